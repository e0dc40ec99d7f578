"""PEFT's layout of a LoRA adapter: its files, its keys, and the configurations we write.

The facts about the format in one place; `config` reads configurations, and the rest of the program
uses `adapter/directory` and `adapter/reading`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sora_cli.adapter.peft.config import MERGE_HINT, PeftConfig
from sora_cli.adapter.peft.patterns import anchored
from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."
AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task type -> transformers' Auto class."""

_A, _B, _E, _RANKNUM = "A", "B", "E", "ranknum"
_LORA = {".lora_A.weight": _A, ".lora_B.weight": _B}
_ADALORA = {".lora_A": _A, ".lora_B": _B, ".lora_E": _E, ".ranknum": _RANKNUM}
_COPY = ".base_layer."
_LONGEST_NAME = 500  # characters
_FOREIGN = {
    ".lora_embedding_": "an adapter on the embedding '{}', not on a linear layer; none such can be "
    "read",
    ".lora_magnitude_vector": "DoRA's magnitudes of '{}', which is more than a plain LoRA",
    ".lora_B.bias": "a bias added by the adapter of '{}', which is more than a plain LoRA",
    ".token_adapter.": "trained rows of the embedding '{}', which is more than a plain LoRA",
}


@dataclass(frozen=True)
class Pair:
    """The keys of one module's factors; E and the scaling's divisor are AdaLoRA's."""

    a: str
    b: str
    e: str | None = None
    ranknum: str | None = None


@dataclass(frozen=True)
class SplitKeys:
    """The keys of an adapter file by what they mean."""

    pairs: dict[str, Pair]
    """The pairs by module path."""
    head: dict[str, str]
    """Parameter name in the base model -> key."""
    copies: tuple[str, ...]
    """Modules whose base weight is in the file, too, as PEFT does for a targeted lm_head."""


def split_keys(keys: Iterable[str], config: PeftConfig, where: str) -> SplitKeys:
    """Sort the keys of an adapter file into pairs and head.

    Raises:
        SoraError: a key that is neither, half a pair, or a name that no module has.
    """
    endings = _ADALORA if config.is_adalora else _LORA
    parts: dict[str, dict[str, str]] = {}
    head, copies = {}, []
    for key in keys:
        name = key.removeprefix(PREFIX)
        if name == key:
            raise SoraError(f"{key[:200]!r} does not start with {PREFIX}", where=where)
        check_name(name, where)
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is not None:
            parts.setdefault(name.removesuffix(ending), {})[endings[ending]] = key
        elif _COPY in name:
            copies.append(name.partition(_COPY)[0])
        elif config.head_module(name) is not None:
            head[name] = key
        else:
            raise _neither(name, where)
    pairs = {path: _pair(path, found, config, where) for path, found in parts.items()}
    for path in copies:
        if path not in pairs:
            raise SoraError(f"'{path}' is stored in full but has no adapter", where=where)
    if not pairs:
        raise SoraError("the file holds no LoRA pair", where=where)
    return SplitKeys(pairs, head, tuple(dict.fromkeys(copies)))


def check_name(name: str, where: str) -> None:
    """Raise `SoraError` unless this could be the name of a model's parameter or module."""
    good = name.isprintable() and not set(name) & set("/\\") and len(name) <= _LONGEST_NAME
    if not good or not all(part.strip() for part in name.split(".")):
        raise SoraError(f"{name[:200]!r} cannot be the name of anything in a model", where=where)


def check_tensor(key: str, tensor: Tensor, where: str) -> None:
    """Raise `SoraError` if a floating-point tensor holds NaN or infinity."""
    if tensor.is_floating_point() and tensor.numel():
        wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()
        if not all(bool(extreme.isfinite()) for extreme in wide.aminmax()):  # NaN wins both
            raise SoraError(f"'{key}' holds NaN or infinity", where=where)


def pair_keys(path: str) -> tuple[str, str]:
    """Return the keys of a module's A and B, as we write them."""
    return f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight"


def written_config(
    ranks: Mapping[str, int],
    *,
    layout: str = "exact",
    base: str,
    revision: str | None,
    task_type: str | None,
    head_modules: Iterable[str],
    fan_in_fan_out: bool,
) -> dict[str, Any]:
    """Return the configuration of what we write: the scaling is in B, so alpha = r everywhere.

    Args:
        ranks: module path -> rank, at least 1 each.
        layout: one of `core.checks.LAYOUTS`.
    """
    largest = max(ranks.values())
    exact = layout == "exact"
    pattern = {anchored(path): r for path, r in ranks.items() if exact and r != largest}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "modules_to_save": list(head_modules) or None,
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _pair(path: str, found: Mapping[str, str], config: PeftConfig, where: str) -> Pair:
    needed = (_A, _B, _E) if config.is_adalora else (_A, _B)
    missing = [part for part in needed if part not in found]
    if missing:
        there = " and ".join(f"a{'n' if p in 'AE' else ''} {p}" for p in needed if p in found)
        raise SoraError(f"'{path}' has {there or 'a ranknum'} but no {missing[0]}", where=where)
    return Pair(found[_A], found[_B], found.get(_E), found.get(_RANKNUM))


def _neither(name: str, where: str) -> SoraError:
    for part, meaning in _FOREIGN.items():
        if part in f"{name}.":
            module = name.partition(part.rstrip("."))[0]
            what = f"'{name}' is {meaning.format(module)}"
            return SoraError(what, where=where, hint=MERGE_HINT)
    return SoraError(
        f"'{name}' is neither half of a LoRA pair nor below modules_to_save",
        where=where,
        hint="for embeddings of a base model that were not changed: PEFT's "
        "save_pretrained(save_embedding_layers=False)"
        if "emb" in name or name.endswith(("lm_head.weight", "wte.weight", "shared.weight"))
        else None,
    )
