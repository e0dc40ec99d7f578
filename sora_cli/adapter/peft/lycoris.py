"""Translate PEFT's LoHa and LoKr directories into the terms of plain LoRA, as far as possible.

They hold `hada_*` or `lokr_*` without `.weight`; the configuration calls `lora_alpha` `alpha`. The
scaling is `alpha / r` (peft/tuners/lycoris_utils). The parts in the file decide how a product is
made, as in `get_delta_weight` of peft/tuners/loha/layer.py and lokr/layer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOHA, LOKR = "LOHA", "LOKR"

_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_KRON = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
)  # fmt: skip
PARTS: Mapping[str, Mapping[str, str]] = {
    LOHA: {f".{part}": part for part in _HADA},
    LOKR: {f".{part}": part for part in _KRON},
}
"""Kind -> {ending of a key: name of the part}."""
_WHOLE: Mapping[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    LOHA: ((_HADA[:4], _HADA),),
    LOKR: (
        (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")),
        (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2")),
    ),
}
"""Kind -> for each of its matrices, the possible sets of parts."""


def plain_terms(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with `lora_alpha` for `alpha`, and without keys of other kinds."""
    absent = {"use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "bias": "none"}
    return {**raw, **absent, "lora_alpha": raw.get("alpha", 8), "init_lora_weights": True}


def lacking(kind: str, parts: Mapping[str, str]) -> tuple[str, ...]:
    """Return the parts of a module that are missing or superfluous; empty: they fit together."""
    superfluous = set(parts)
    for choices in _WHOLE[kind]:
        complete = [set(choice) for choice in choices if set(choice) <= set(parts)]
        if not complete:
            return choices[0]
        superfluous -= max(complete, key=len)  # with the core, if it is there
    return tuple(sorted(superfluous))
