"""Translate PEFT's AdaLoRA directories into the terms of plain LoRA.

They hold `lora_A`, `lora_E` and `lora_B` without `.weight`. Their `rank_pattern` has a list of bool
for each module: true for each of its `init_r` components that is left, and only those are stored.
The scaling stays `alpha / (init_r + 1e-5)` at every rank (peft/tuners/adalora, `ranknum`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from torch import Tensor

ADALORA = "ADALORA"
INITIAL_RANK = 12
"""PEFT's default for `init_r`."""
EPSILON = 1e-5  # PEFT adds it to ranknum (tuners/adalora/layer.py: get_delta_weight)
_E = ".lora_E"


def plain_terms(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the configuration with `r` for `init_r`, and each module's rank under its path.

    Keys that PEFT's AdaLoRA ignores are left out: rsLoRA and `alpha_pattern`.
    """
    pattern = raw.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise SoraError("rank_pattern: not a mapping of modules to lists of bool", where=where)
    ranks: dict[str, int] = {}
    for name, kept in pattern.items():
        if not isinstance(kept, list) or not all(isinstance(keep, bool) for keep in kept):
            raise SoraError(f"rank_pattern: '{name}' is not a list of bool", where=where)
        if len(kept) != raw.get("init_r", INITIAL_RANK):
            raise SoraError(f"rank_pattern: '{name}' has {len(kept)} entries, not init_r",
                            where=where)  # fmt: skip
        path = _path(name)
        if path is None or path in ranks:
            raise SoraError(f"rank_pattern: '{name[:200]}' does not name one module's lora_E",
                            where=where)  # fmt: skip
        ranks[path] = sum(kept)
    return {
        **raw,
        "r": raw.get("init_r", INITIAL_RANK),
        "use_rslora": False,
        "rank_pattern": None,
        "alpha_pattern": None,
        "module_ranks": ranks,
    }


def scaling(alpha: float, initial_rank: float) -> float:
    """Return the factor of `B diag(E) A` in PEFT."""
    return alpha / (initial_rank + EPSILON)


def fold(b: Tensor, e: Tensor) -> Tensor:
    """Return B diag(E): (out, r) and (r, 1) -> (out, r), float32."""
    return b.float() * e.float().reshape(1, -1)


def _path(name: str) -> str | None:
    """Return the module of "<module>.lora_E", in some versions "<module>.lora_E.<adapter>"."""
    if name.endswith(_E):
        return name.removesuffix(_E)
    before, found, _ = name.rpartition(f"{_E}.")
    return before if found else None
