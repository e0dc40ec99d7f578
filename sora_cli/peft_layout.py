"""PEFT's layout of a LoRA adapter: its configuration, its keys and its matching rules.

Facts about the format in one place; `adapter.py` is what the rest of the program uses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from sora_cli.errors import SoraError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"

_SAFE_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
# Whatever else an init does, these alone leave the base weights as they are.
_HEADS_PEFT_ADDS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# Options that make an adapter more, or other, than a sum of rank-one terms.


class PeftConfig(BaseModel):
    """What is read from `adapter_config.json`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True

    def rank(self, path: str) -> int:
        """The rank PEFT gives a module: the first pattern that matches, else `r`."""
        return int(_first_match(self.rank_pattern or {}, path, self.r))

    def scaling(self, path: str) -> float:
        """What PEFT multiplies `B A` of a module with."""
        alpha = _first_match(self.alpha_pattern or {}, path, self.lora_alpha)
        rank = self.rank(path)
        return float(alpha / math.sqrt(rank)) if self.use_rslora else float(alpha / rank)

    def head_module(self, name: str) -> str | None:
        """The module saved in full that a parameter belongs to, or None.

        PEFT saves every module whose path ends with an entry (dot or not), and adds its own.
        """
        entries = (*(self.modules_to_save or ()), *_HEADS_PEFT_ADDS.get(self.task_type or "", ()))
        parts = name.split(".")
        for end in range(1, len(parts)):
            path = ".".join(parts[:end])
            if any(path.endswith(entry) for entry in entries):
                return path
        return None


@dataclass(frozen=True)
class SplitKeys:
    """The keys of an adapter file by what they mean."""

    pairs: dict[str, tuple[str, str]]
    """Module path -> keys of its A and its B."""
    head: dict[str, str]
    """Parameter name in the base model -> key."""


def parse_config(raw: Any, where: str) -> PeftConfig:
    """Check and type a configuration.

    Raises:
        SoraError: not a plain LoRA, or values that can not be.
    """
    if not isinstance(raw, dict) or "peft_type" not in raw:
        raise SoraError("this is no PEFT adapter configuration: it has no peft_type", where=where)
    if raw["peft_type"] != "LORA":
        raise SoraError(
            f"this is a {raw['peft_type']} adapter; only LORA can be read so far", where=where
        )
    try:
        config = PeftConfig(**raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SoraError(f"{key}: {first['msg']}", where=where) from error
    _refuse_variants(config, raw, where)
    _check_patterns(config, where)
    return config


def split_keys(keys: Iterable[str], config: PeftConfig, where: str) -> SplitKeys:
    """Sort the keys of an adapter file into pairs and head.

    Raises:
        SoraError: a key that is neither, or half a pair.
    """
    halves: dict[str, dict[str, str]] = {}
    head = {}
    for key in keys:
        name = key.removeprefix(PREFIX)
        if name == key:
            raise SoraError(f"'{key}' does not start with {PREFIX}", where=where)
        if "lora_embedding_" in name:
            raise SoraError("adapters on embeddings can not be read so far", where=where)
        for ending in (_A, _B):
            if name.endswith(ending):
                halves.setdefault(name.removesuffix(ending), {})[ending] = key
                break
        else:
            if config.head_module(name) is None:
                raise SoraError(
                    f"'{key}' is neither half of a LoRA pair nor below modules_to_save", where=where
                )
            head[name] = key
    for path, half in halves.items():
        if len(half) != 2:
            raise SoraError(f"'{path}' has {'an A but no B' if _A in half else 'a B but no A'}",
                            where=where)  # fmt: skip
    if not halves:
        raise SoraError("the file holds no LoRA pair", where=where)
    return SplitKeys({path: (half[_A], half[_B]) for path, half in halves.items()}, head)


def pair_keys(path: str) -> tuple[str, str]:
    """The keys of a module's A and B."""
    return f"{PREFIX}{path}{_A}", f"{PREFIX}{path}{_B}"


def exact_config(
    ranks: Mapping[str, int],
    *,
    base: str,
    revision: str | None,
    task_type: str | None,
    head_modules: Iterable[str],
    fan_in_fan_out: bool,
) -> dict[str, Any]:
    """The configuration of the exact layout: the scaling is in B, so alpha = r for each module.

    Args:
        ranks: module path -> rank, at least 1 each.
    """
    largest = max(ranks.values())
    pattern = {f"^{re.escape(path)}": r for path, r in ranks.items() if r != largest}
    _check_unambiguous(pattern, ranks)
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


def check_tensor(key: str, tensor: Tensor, where: str) -> None:
    """Raise `SoraError` if a floating-point tensor holds NaN or infinity."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise SoraError(f"'{key}' holds NaN or infinity", where=where)


def _matches(key: str, path: str) -> bool:
    """PEFT's own rule (peft.utils.other.get_pattern_key)."""
    return re.match(rf"(.*\.)?({key})$", path) is not None


def _first_match(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    return next((value for key, value in pattern.items() if _matches(key, path)), default)


def _check_unambiguous(pattern: Mapping[str, int], ranks: Mapping[str, int]) -> None:
    for key in pattern:
        hits = [path for path in ranks if _matches(key, path)]
        if len(hits) != 1:
            raise SoraError(f"the pattern '{key}' matches {len(hits)} modules: {hits[:3]}")


def _refuse_variants(config: PeftConfig, raw: Mapping[str, Any], where: str) -> None:
    on = [name for name in _VARIANTS if raw.get(name)]
    if on:
        raise SoraError(f"{on[0]} is set: this is more than a plain LoRA", where=where)
    if config.bias != "none":
        raise SoraError(f"bias: {config.bias} changes biases of the base; not read so far",
                        where=where)  # fmt: skip
    if config.init_lora_weights not in _SAFE_INITS:
        raise SoraError(
            f"init_lora_weights: {config.init_lora_weights} also changes the base weights",
            where=where,
            hint="PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) converts it",
        )


def _check_patterns(config: PeftConfig, where: str) -> None:
    for pattern in (config.rank_pattern or {}, config.alpha_pattern or {}):
        for key in pattern:
            try:
                re.compile(key)
            except re.error as error:
                raise SoraError(f"the pattern '{key}' is no regular expression: {error}",
                                where=where) from error  # fmt: skip
    if min([config.r, *(config.rank_pattern or {}).values()]) < 1:
        raise SoraError("ranks must be at least 1", where=where)
