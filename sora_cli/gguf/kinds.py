"""The kinds of models with layers that llama.cpp stores unchanged, or with rows in another order.

Read from its converter (ggml-org/llama.cpp, `conversion/*.py`, one file per family, November 2026):
a class there may change a weight besides giving it a name from the tables of the package `gguf`.
Left out are kinds whose weights it splits, joins or stacks (experts, latent attention, state space
models), or whose order of rows does not follow from the configuration alone (Falcon).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """The form in which llama.cpp stores a kind of model.

    Attributes:
        architecture: llama.cpp's name.
        order: of rows: "" unchanged; "turns", the halves of each query and key head take turns
            (`LlamaModel.permute`); "joint", all queries, then all keys, then all values
            (`BloomModel`, `GPTNeoXModel`).
    """

    architecture: str
    order: str = ""


KINDS: Mapping[str, Kind] = {
    **{name: Kind("llama", "turns") for name in ("llama", "mistral", "mixtral")},
    "arcee": Kind("arcee", "turns"),
    "granite": Kind("granite", "turns"),
    "olmo": Kind("olmo", "turns"),
    "smollm3": Kind("smollm3", "turns"),
    "bloom": Kind("bloom", "joint"),
    "gpt_neox": Kind("gptneox", "joint"),
    **{name: Kind(name) for name in (
        "apertus", "exaone4", "gemma", "gemma2", "glm4", "gpt2", "lfm2", "mpt", "nemotron", "olmo2",
        "phi3", "qwen2", "qwen3", "stablelm", "starcoder2", "t5",
    )},
    **{name: Kind("bert") for name in (
        "bert", "camembert", "distilbert", "roberta", "xlm-roberta",
    )},
    "cohere": Kind("command-r"),
    "cohere2": Kind("cohere2"),
    "ernie4_5": Kind("ernie4_5"),
    "gemma3_text": Kind("gemma3"),
    "gpt_bigcode": Kind("starcoder"),
    "gpt_oss": Kind("gpt-oss"),
    "hunyuan_v1_dense": Kind("hunyuan-dense"),
    "mt5": Kind("t5"),
    "olmo3": Kind("olmo2"),
    "phi": Kind("phi2"),
    "qwen2_moe": Kind("qwen2moe"),
    "qwen3_moe": Kind("qwen3moe"),
    "seed_oss": Kind("seed_oss"),
    "umt5": Kind("t5"),
}  # fmt: skip
"""transformers' model type -> its form in llama.cpp."""

_TIED = frozenset((
    "bloom", "cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "gpt2",
    "gpt_bigcode", "lfm2", "mpt", "mt5", "smollm3", "starcoder2", "t5", "umt5",
))  # fmt: skip
"""Model types whose output layer is the embedding, unless their configuration says otherwise."""

_WITHOUT_FACTORS = ("cls", "cls.output")
"""Weights that llama.cpp multiplies without their factors (`build_pooling`)."""


def exact_in_gguf(model_type: object) -> bool:
    """Return true if `sora export --format gguf` takes this kind of model, or if it is None."""
    return model_type is None or model_type in KINDS


def has_tied_output(config: Mapping[str, Any]) -> bool:
    """Return true if a model's output layer is its embedding, by its config.json."""
    tied = config.get("tie_word_embeddings")
    return config.get("model_type") in _TIED if tied is None else bool(tied)


def gguf_names(model_type: str, paths: Iterable[str]) -> dict[str, str | None] | None:
    """Return {module path: its weight's name in a GGUF file, without ending; None for no place}.

    Args:
        model_type: of the base model's configuration, or an architecture of llama.cpp.

    Returns:
        None if the package `gguf`, which has the tables of names, is not installed.

    Raises:
        LookupError: llama.cpp does not know this kind of model.
    """
    try:
        import gguf
    except ImportError:
        return None
    paths = tuple(paths)
    plain = _normalised(model_type)
    wanted = _normalised(_ARCHITECTURES.get(plain, plain))
    known = {_normalised(name): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if wanted not in known:
        raise LookupError(model_type)
    # the package makes its table for a number of layers, which the largest index tells
    numbers = (int(part) for path in paths for part in path.split(".") if part.isdecimal())
    names = gguf.get_tensor_name_map(known[wanted], max(numbers, default=0) + 1)
    # converters of encoders remove the backbone's name
    weights = {p: names.get_name(p) or names.get_name(p.partition(".")[2]) for p in paths}
    return {path: None if name in _WITHOUT_FACTORS else name for path, name in weights.items()}


def _normalised(name: str) -> str:
    return re.sub(r"[-_]", "", name.lower())


_ARCHITECTURES = {
    "gemma4text": "gemma4",
    **{_normalised(name): kind.architecture for name, kind in KINDS.items()},
}
"""transformers' model type, without dashes -> llama.cpp's architecture, where they may differ."""
