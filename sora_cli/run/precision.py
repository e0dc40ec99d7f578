"""`training.precision: auto`: bf16 on devices with instructions for it, else fp32.

A run chooses once, before any computation. Its report and its checkpoints store the chosen
precision, never `auto`, and a resumed run keeps it on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sora_cli.core.console import say_notes
from sora_cli.core.device import has_bf16, is_accelerated, process_state
from sora_cli.core.processes import world_size
from sora_cli.core.timing import importing
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.yaml_lines import Origin
from sora_cli.report import read_report

_KEY = ("training", "precision")
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""x86 instructions for products in bf16, under torch's names."""


def settle_precision(loaded: LoadedRecipe, *, resume: bool = False) -> LoadedRecipe:
    """Replace `precision: auto` in a recipe by bf16 or fp32, and print the choice with its reason.

    Args:
        resume: take the precision of the run in the output directory.
    """
    if loaded.recipe.training.precision != "auto":
        return loaded
    stored = _stored(loaded) if resume else None
    precision, why = _agreed(*device_precision()) if stored is None else stored
    note = f"training.precision: auto is {precision}: {why}"
    say_notes([note])
    training = loaded.recipe.training.model_copy(update={"precision": precision})
    return replace(
        loaded,
        recipe=loaded.recipe.model_copy(update={"training": training}),
        origins=loaded.origins | {_KEY: Origin(f"auto, {loaded.origin(*_KEY)}")},
        notes=(*loaded.notes, note),
    )


def device_precision() -> tuple[str, str]:
    """Return bf16 or fp32 for this machine's training device, and the reason."""
    with importing():
        import torch
    if is_accelerated():
        if has_bf16():
            return "bf16", "the GPU has instructions for it"
        return "fp32", "the GPU has no instructions for bf16"
    # absent in older versions of torch
    # until: torch > 2.8
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    instructions = [name for name in _INSTRUCTIONS if capabilities.get(name)]
    if instructions:
        return "bf16", f"the processor has instructions for it ({', '.join(instructions)})"
    return "fp32", "torch knows of no instructions for bf16 on this processor"


def _stored(loaded: LoadedRecipe) -> tuple[str, str] | None:
    """Return the precision of the run in the output directory, and the reason; None: no run."""
    report = read_report(loaded.output_dir)
    stored = None if report is None else report.recipe.get("training", {}).get("precision")
    return None if stored is None else (stored, "the run was started with it")


def _agreed(precision: str, why: str) -> tuple[str, str]:
    """Return the precision for all processes: bf16 only if every process's device supports it."""
    if world_size() == 1:
        return precision, why
    from accelerate.utils import gather_object

    process_state()
    choices = gather_object([(precision, why)])
    return next((other for other in choices if other[0] == "fp32"), (precision, why))
