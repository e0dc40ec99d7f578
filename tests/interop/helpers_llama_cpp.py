"""llama.cpp itself, from the package xllamacpp: base models and adapters as GGUF files."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sora_cli.tasks.messages import Message

NEEDS = "llama.cpp is not installed: pip install xllamacpp (a wheel with its own copy)"
TOP = 20
"""Tokens whose logarithms of probabilities are compared at each place."""

Step = tuple[int, dict[int, float]]
"""The token written at a place, never the end of the text; and the likeliest tokens' logarithms of
probabilities."""


class LlamaCpp:
    """A model in llama.cpp, on one thread, with or without adapters.

    Args:
        scale: of all adapters, where a request names none.
    """

    def __init__(self, model: Path, *adapters: Path, scale: float = 1.0) -> None:
        self._library = pytest.importorskip("xllamacpp", reason=NEEDS)
        parameters = self._library.CommonParams()
        parameters.model.path = str(model)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = 256, 1, False
        parameters.verbosity, parameters.cpuparams.n_threads = 1, 1
        if adapters:
            info = self._library.CommonAdapterLoraInfo
            parameters.lora_adapters = [info(str(adapter), scale) for adapter in adapters]
        self._server: Any = self._library.Server(parameters)
        self.address: str = self._server.listening_address

    def write(
        self, ids: Sequence[int], tokens: int, *, scale: float | None = None, adapter: int = 0
    ) -> list[Step]:
        """Write greedily after a prompt.

        Args:
            scale: of the adapter of this number; None: the request names none.
        """
        request = {
            "prompt": list(ids), "max_tokens": tokens, "temperature": 0.0, "logprobs": TOP,
            "cache_prompt": False, "ignore_eos": True,
        }  # fmt: skip
        if scale is not None:
            request["lora"] = [{"id": adapter, "scale": scale}]
        answer = self._server.handle_completions(request)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        places = answer["choices"][0]["logprobs"]["content"]
        return [(p["id"], {t["id"]: t["logprob"] for t in p["top_logprobs"]}) for p in places]

    def chat(self, messages: Sequence[Message], tokens: int) -> str:
        """Answer a dialogue greedily, with the chat template in the model's file."""
        request = {"messages": list(messages), "max_tokens": tokens, "temperature": 0.0,
                   "cache_prompt": False}  # fmt: skip
        answer: str = self._server.handle_chat_completions(request)["choices"][0]["message"][
            "content"
        ]
        return answer

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the prompt that `chat` answers."""
        prompt = self._post("apply-template", messages=list(messages))["prompt"]
        made = self._post("tokenize", content=prompt, add_special=True, parse_special=True)
        ids: list[int] = made["tokens"]
        return ids

    def ids_of(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        made: list[int] = self._post("tokenize", content=text, parse_special=True)["tokens"]
        return made

    def _post(self, path: str, **content: Any) -> Any:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{path}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@torch.no_grad()
def write_with(model: Any, ids: Sequence[int], tokens: int) -> list[Step]:
    """Do what `LlamaCpp.write` does with a model of transformers or PEFT, without a cache."""
    found, text, end = [], list(ids), model.config.eos_token_id
    for _ in range(tokens):
        scores = model(input_ids=torch.tensor([text])).logits[0, -1].float().log_softmax(0)
        best = scores.topk(TOP)
        likely = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        text.append(next(token for token in likely if token != end))
        found.append((text[-1], likely))
    return found


def same_tokens(a: Sequence[Step], b: Sequence[Step]) -> int:
    """Count the tokens that are the same from the start."""
    pairs = zip(a, b, strict=True)
    return next((i for i, (x, y) in enumerate(pairs) if x[0] != y[0]), len(a))


def distance(a: Sequence[Step], b: Sequence[Step]) -> float:
    """Return the root mean square difference of logarithms, where the text so far is the same."""
    squares = []
    for (_, x), (_, y) in list(zip(a, b, strict=True))[: same_tokens(a, b) + 1]:
        squares += [(x[token] - y[token]) ** 2 for token in x.keys() & y.keys()]
    return math.sqrt(sum(squares) / len(squares))
