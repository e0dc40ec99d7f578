"""vLLM on the CPU, in this process or as a server, and tiny models that it can compute.

`make test-vllm` installs it. One engine takes a second once vLLM is imported, a server half a
minute: rules are tried with engines in this process, command lines with servers.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor

from methods import inject, registry
from sora_cli.adapter.saving import save_adapter
from tests.architectures import options_of
from tests.helpers_adapters import randomise

WIDTH = 64
"""Heads of 32 numbers are the smallest that it computes on the CPU."""
PROMPTS = ([5, 9, 17, 33, 2, 41], [7, 3, 3, 60, 22, 11, 19, 44], [12, 50])
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
_SIZES = {"hidden_size": WIDTH, "head_dim": WIDTH // 2, "moe_intermediate_size": 32,
          "query_pre_attn_scalar": WIDTH // 2}  # fmt: skip
_numbers = count(1)
QVD = ["q_proj", "v_proj", "down_proj"]
CAUSAL = transformers.AutoModelForCausalLM.from_pretrained
Load = Callable[[Path], Any]


def write_base(folder: Path, kind: str, class_name: str, *, seed: int = 0, **more: Any) -> Path:
    """Write a tiny model of a class, with a tokenizer whose words are its numbers."""
    options = options_of(kind)
    sizes = {key: size for key, size in _SIZES.items() if key in options}
    config = transformers.AutoConfig.for_model(kind, **{**options, **sizes, **more})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        getattr(transformers, class_name)(config).save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2, **{f"w{i}": i for i in range(3, 64)}}
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(folder)
    return folder


class Engine:
    """vLLM's engine in this process."""

    def __init__(self, base: Path, **options: Any) -> None:
        from vllm import LLM

        shared = {"dtype": "float32", "enforce_eager": True, "enable_lora": True, "max_loras": 2,
                  "max_lora_rank": 8, "max_model_len": 48}  # fmt: skip
        self.model = LLM(str(base), **{**shared, **options})

    def load(self, adapter: Path | None) -> Any:
        """Load an adapter, as a server does; refusals are vLLM's own errors."""
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        number = next(_numbers)
        request = LoRARequest(f"a{number}", number, str(adapter))
        self.model.llm_engine.add_lora(request)
        return request

    def next_token(self, *loaded: Any) -> list[Tensor]:
        """Log-probabilities of the next token after each prompt; all adapters in one batch."""
        from vllm import SamplingParams

        wanted = SamplingParams(max_tokens=1, temperature=0, logprobs=-1, detokenize=False)
        prompts = [{"prompt_token_ids": list(ids)} for _ in loaded for ids in PROMPTS]
        requests = [request for request in loaded for _ in PROMPTS]
        replies = self.model.generate(prompts, wanted, lora_request=requests, use_tqdm=False)
        found = [reply.outputs[0].logprobs[0] for reply in replies]
        return [torch.tensor([one[i].logprob for i in range(len(one))]) for one in found]

    def pooled(self, loaded: Any, task: str) -> list[Tensor]:
        """The vector, or the probabilities of the classes, of each prompt."""
        prompts = [{"prompt_token_ids": list(ids)} for ids in PROMPTS]
        replies = self.model.encode(prompts, pooling_task=task, lora_request=loaded, use_tqdm=False)
        return [reply.outputs.data.float() for reply in replies]

    @property
    def _manager(self) -> Any:
        worker = self.model.llm_engine.engine_core.engine_core.model_executor.driver_worker
        return getattr(worker, "worker", worker).model_runner.lora_manager._adapter_manager

    def slots(self) -> list[int | None]:
        """The number of the adapter in each of the slots."""
        return list(self._manager.lora_index_to_id)

    def adapted(self, loaded: Any) -> set[str]:
        """The modules in which an adapter's factors have arrived."""
        slot = self.slots().index(loaded.lora_int_id)
        return {p for p, module in self._manager.modules.items() if _arrived(vars(module), slot)}


def _arrived(module: dict[str, Any], slot: int) -> bool:
    if (enabled := module.get("adapter_enabled")) is not None:  # experts
        return bool(enabled[slot])
    stacked = module["lora_b_stacked"]
    parts = stacked if isinstance(stacked, (tuple, list)) else (stacked,)
    return any(part[slot].any() for part in parts)


@contextmanager
def engine(base: Path, **options: Any) -> Iterator[Engine]:
    """Run an engine; another one may start after it, also where it did not start."""
    from vllm.distributed import cleanup_dist_env_and_memory

    try:
        yield Engine(base, **options)
    finally:
        cleanup_dist_env_and_memory()


class Served:
    """A server of vLLM's that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **body: Any) -> tuple[int, Any]:
        """Return the status and the answer."""
        data, header = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, header)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, text = answer.status, answer.read().decode()
        except HTTPError as error:
            status, text = error.code, error.read().decode()
        return status, json.loads(text) if text.startswith("{") else text

    def next_token(self, model: str) -> list[dict[str, float]]:
        """The likeliest tokens after each prompt, with their log-probabilities."""
        found = []
        for ids in PROMPTS:
            status, answer = self.ask("/v1/completions", model=model, prompt=list(ids),
                                      max_tokens=1, temperature=0, logprobs=5,
                                      return_tokens_as_token_ids=True)  # fmt: skip
            assert status == 200, answer
            found.append(answer["choices"][0]["logprobs"]["top_logprobs"][0])
        return found


@contextmanager
def served(command: str, folder: Path, *more: str, seconds: float = 300) -> Iterator[Served]:
    """Start a printed command line, at a port of its own; all its processes end with it."""
    port = free_port()
    name, *words = shlex.split(command)
    assert name == "vllm"
    program = Path(sys.executable).with_name("vllm")
    log = folder / f"server-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, *words, "--host", "127.0.0.1", "--port", str(port), *more],
            cwd=folder, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, **SETTINGS, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
                 "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        )  # fmt: skip
    try:
        made = Served(f"http://127.0.0.1:{port}")
        _wait(made.url, process, log, seconds)
        yield made
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        end(process.pid)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(group: int) -> None:
    """Kill what is left of a group of processes."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    for _ in range(int(seconds)):
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text(errors="replace")[-4000:])


def far(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Case:
    """An adapter that PEFT writes.

    Attributes:
        refused: vLLM's words; "": it serves the adapter, right.
        says: words of `inspect`, which advises against it; "": it prints the command.
        grow: rows that the embedding gets before.
        dropped: vLLM loads the adapter and leaves all or a part of it out.
    """

    options: dict[str, Any]
    refused: str = ""
    says: str = ""
    config: Callable[..., Any] = LoraConfig
    grow: int = 0
    dropped: bool = False


def write(base: Path, case: Case, folder: Path, load: Load) -> Path:
    options = {"r": 4, "target_modules": QVD, "task_type": "CAUSAL_LM", **case.options}
    if case.config is LoraConfig:
        options = {"lora_alpha": 7, **options}
    tuned = get_peft_model(load(base), case.config(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    tuned.save_pretrained(folder)
    return folder


@torch.no_grad()
def next_token(model: Any) -> list[Tensor]:
    outputs = [model.eval()(torch.tensor([ids])).logits[0, -1] for ids in PROMPTS]
    return [logits.float().log_softmax(-1) for logits in outputs]


def ours(base: Path, folder: Path, seed: int = 0) -> tuple[Path, list[Tensor]]:
    """An adapter of ours, with ranks of 0 to 4, and the answers of its model."""
    model, generator = CAUSAL(base), torch.Generator().manual_seed(seed)
    method = registry.create("sora", r_max=4)
    layers = inject.inject(model, method, generator=generator)
    randomise(model, layers, (), ranks="mixed", generator=generator)
    for layer in layers.values():
        layer.B.data.mul_(3)
    save_adapter(model, method, folder, base_model=str(base))
    return folder, next_token(model)
