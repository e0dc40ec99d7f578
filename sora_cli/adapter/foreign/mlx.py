"""mlx-lm's adapters: `adapters.safetensors`, and an `adapter_config.json` of its own.

dW = scale (lora_a lora_b)^T with lora_a (in, r) and lora_b (r, out): transposed to PEFT's
(mlx_lm/tuner/lora.py: `LoRALinear.fuse`). `scale` in `lora_parameters` is the whole factor. Early
versions also had an `alpha` there, and multiplied by scale * alpha / rank; today's versions load
such files with `scale` alone. If the two differ, the file does not say which factor it was trained
with, and it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sora_cli.adapter.foreign.contents import Contents, ForeignPair, Source, halves
from sora_cli.core.errors import SoraError

NAME = "MLX"

_MORE = {"it adapts experts, each with factors of its own": ".switch_mlp."}
_PARAMETERS = "lora_parameters"
_PLAIN = "LoRA".lower()  # its fine_tune_type, not the method


def read(source: Source) -> Contents | None:
    """Read mlx-lm's files; return None for another format."""
    if not any(key.endswith((".lora_a", ".lora_b")) for key in source.keys):
        return None
    _check_kind(source)
    modules = halves(source, _split, _MORE)
    base, scale = source.config.get("model"), _scale(source)
    pairs = []
    for module, keys in modules.items():
        for key in (keys["a"], keys["b"]):
            if len(source.tensors.shape(key)) != 2:
                raise SoraError(
                    f"'{key}' is not a matrix but has the shape {source.tensors.shape(key)}: it "
                    "adapts experts, each with factors of its own",
                    where=source.where,
                )
        pairs.append(ForeignPair(module, "", keys["a"], keys["b"], scale, transposed=True))
    return Contents(
        NAME,
        tuple(pairs),
        base=base if isinstance(base, str) else "",
        task_type="CAUSAL_LM",
    )


def _split(key: str) -> tuple[str, str] | None:
    module, _, half = key.rpartition(".")
    kinds = {"lora_a": "a", "lora_b": "b"}
    return (module, kinds[half]) if module and half in kinds else None


def _check_kind(source: Source) -> None:
    kind = source.config.get("fine_tune_type", _PLAIN)
    if kind == "dora" or any(key.endswith(".m") for key in source.keys):
        raise SoraError(
            "it is a DoRA, which also rescales every column of the base weight", where=source.where
        )
    if kind != _PLAIN:
        raise SoraError(f"fine_tune_type is {kind!r}, not '{_PLAIN}'", where=source.where)


def _scale(source: Source) -> float:
    parameters = source.config.get(_PARAMETERS)
    if not isinstance(parameters, Mapping):
        raise SoraError(
            f"its scale is not known: there is no adapter_config.json with {_PARAMETERS} beside it",
            where=source.where,
        )
    scale, alpha, rank = (parameters.get(name) for name in ("scale", "alpha", "rank"))
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise SoraError(f"{_PARAMETERS} has no scale, or its scale is not a number",
                        where=source.where)  # fmt: skip
    if alpha is not None and alpha != rank:
        raise SoraError(
            f"{_PARAMETERS} holds alpha {alpha} and scale {scale}: early versions multiplied by "
            "scale * alpha / rank, today's by scale",
            where=source.where,
            hint="set scale to the factor used in training, and remove alpha",
        )
    return float(scale)
