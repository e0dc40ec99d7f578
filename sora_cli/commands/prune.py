"""`sora prune`: a smaller adapter, and what that lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.console import count, emit, emit_table, say, size
from sora_cli.errors import SoraError

if TYPE_CHECKING:
    from sora_cli.adapter import Adapter
    from sora_cli.pruning import Loss


def prune(
    directory: Path,
    output: Path,
    *,
    energy: float | None,
    rank: int | None,
    max_params: int | None,
    force: bool,
) -> None:
    """Write a pruned copy of an adapter; without a rule, only exact zeros are left out.

    Args:
        directory: an adapter directory, ours or any PEFT LoRA's, or a run directory.
        output: directory to write.
        energy: share of each module's squared singular values to keep, up to 1.
        rank: largest rank of a module.
        max_params: numbers in all factors together, chosen over all modules; head not counted.
        force: replace an adapter that is at `output`.

    Raises:
        SoraError: bad input, two rules at once, or an output that exists.
    """
    from sora_cli.adapter import locate_adapter, read_adapter, write_adapter
    from sora_cli.atomic import check_replaceable
    from sora_cli.peft_layout import CONFIG_FILE
    from sora_cli.pruning import prune_layers

    check_replaceable(output, force=force, markers=(CONFIG_FILE,))
    directory = locate_adapter(directory)
    adapter, size_before = read_adapter(directory), _file_size(directory)
    layers, losses = prune_layers(adapter.layers, energy=energy, rank=rank, max_params=max_params)
    total = reduce(lambda a, b: a + b, losses.values())
    if max_params is not None and total.after == 0 and total.squared > 0:
        raise SoraError(
            f"not one component fits into --max-params {max_params}",
            hint=f"the smallest takes {_smallest(adapter)} parameters",
        )
    kept = sum(factors.parameters for factors in layers.values())
    rule = {"energy": energy, "rank": rank, "max_params": max_params}
    meta = adapter.meta.model_copy(
        update={
            "lineage": (*adapter.meta.lineage, _entry(rule, total, adapter.parameters, kept)),
            "ranks_start": adapter.ranks_start(),
        }
    )
    write_adapter(output, dataclasses.replace(adapter, layers=layers, meta=meta), force=force)
    _show(losses, total, adapter, kept)
    say(f"wrote {output}: {_file_size(output)}, was {size_before}")


def _entry(rule: Mapping[str, Any], total: Loss, before: int, after: int) -> dict[str, Any]:
    """What the lineage says of this step."""
    return {
        "command": "prune",
        **{name: value for name, value in rule.items() if value is not None},
        "components": [total.before, total.after],
        "parameters": [before, after],
        "relative_error": total.relative_error,
    }


def _show(losses: Mapping[str, Loss], total: Loss, adapter: Adapter, kept: int) -> None:
    rows = [_row(path, loss) for path, loss in losses.items()]
    emit_table(
        None,
        ["module", "rank", "kept", "error in ||dW||"],
        rows,
        footer=_row("all", total),
    )
    head = adapter.head_parameters
    emit(f"parameters: {count(adapter.parameters)} -> {count(kept)}"
         + (f", and a head of {count(head)} as it was" if head else ""))  # fmt: skip
    if total.dropped == 0:
        emit("nothing was lost: only terms that are exactly zero were left out")


def _row(name: str, loss: Loss) -> list[str]:
    error = "-" if loss.dropped == 0 else f"{loss.relative_error:.2%}"
    return [name, str(loss.before), str(loss.after), error]


def _file_size(directory: Path) -> str:
    from sora_cli.peft_layout import WEIGHTS_FILE

    return size((directory / WEIGHTS_FILE).stat().st_size)


def _smallest(adapter: Adapter) -> int:
    return min(f.A.shape[1] + f.B.shape[0] for f in adapter.layers.values() if f.rank)
