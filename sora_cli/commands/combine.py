"""`sora combine`: one adapter from several adapters of the same base model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.losses import loss_table, module_facts, shown_error
from sora_cli.adapter.places import check_adapter_place, locate_adapter
from sora_cli.commands import completion, options
from sora_cli.commands._files import check_files, of_results, output_folder
from sora_cli.commands._flags import Budget, spliced
from sora_cli.core.checks import COMBINATIONS, STORED, check_choice, check_requires
from sora_cli.core.console import count, emit, say, say_notes, size
from sora_cli.core.errors import SoraError
from sora_cli.core.table import emit_table
from sora_cli.core.timing import uncollected
from sora_cli.model.files import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from sora_cli.adapter.combine import Combined


@spliced
def combine(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Two or more run or adapter directories (ours or any PEFT LoRA) of one base "
            "model.",
            autocompletion=completion.runs,
        ),
    ],
    output: options.Output,
    *,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Factor of each update, in the order of the adapters: 0.7,0.3. Default: the mean.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="linear: the weighted sum, exact unless cut by a rule. ties: small numbers are "
            "trimmed, and signs elected by majority (arXiv 2306.01708). dare: numbers are dropped "
            "at random (arXiv 2311.03099).",
        ),
    ] = COMBINATIONS[0],
    density: Annotated[
        float | None,
        typer.Option(
            "--density",
            help="With ties or dare: share of each update's numbers to keep. Default: 0.2 for "
            "ties, 0.5 for dare.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, help="With dare: seed of the dropping. Default: 0.", show_default=False
        ),
    ] = None,
    budget: Budget,
    dtype: options.FactorDtype = STORED[0],
    as_json: options.Json = False,
    force: options.Force = False,
) -> None:
    """Combine the updates of several adapters into one adapter."""
    keep = budget.keep()
    check_choice("method", method, COMBINATIONS)
    check_choice("dtype", dtype, STORED)
    linear, _, dare = COMBINATIONS
    if method == linear:
        check_requires("--method ties or dare", {"--density": density is not None})
    if method != dare:
        check_requires("--method dare", {"--seed": seed is not None})
    if len(adapters) < 2:
        raise SoraError("sora combine needs two adapters or more", hint="name another adapter")
    numbers = _numbers(weights, len(adapters))
    places = [locate_adapter(place, missing="there is no adapter in it") for place in adapters]
    for place in places:
        say_notes(result_remarks(place))
    check_files(output_folder("-o", output), of_results(*places))
    check_adapter_place(output, force=force)
    with uncollected():
        from sora_cli.adapter.combine import DENSITIES, Combination, Mixing
        from sora_cli.adapter.dense import module_progress
        from sora_cli.adapter.reading import open_adapter

    share = DENSITIES.get(method, 1.0) if density is None else density
    mixing = Mixing(numbers, method, share, seed or 0)
    mixing.check(len(adapters), keep)
    with ExitStack() as opened:
        files = [opened.enter_context(open_adapter(place)) for place in places]
        combination = Combination(files, mixing)
        shown = nullcontext(_untold) if method == linear else module_progress("decomposing")
        with shown as progress:
            done = combination.write(output, keep, dtype=dtype, force=force, progress=progress)
    say_notes(done.notes)
    emit(json.dumps(_facts(done, mixing.weights, keep.given()), indent=2)) if as_json else _show(
        done
    )
    say(f"wrote {output}: {size((output / ADAPTER_WEIGHTS).stat().st_size)}")


def _untold(path: str) -> None:
    """Show no progress: a weighted sum of factors takes no time."""


def _numbers(weights: str | None, adapters: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / adapters,) * adapters
    try:
        return tuple(float(word) for word in weights.split(","))
    except ValueError as error:
        raise SoraError(
            f"--weights {weights} is not a list of numbers", hint="for example: --weights 0.7,0.3"
        ) from (error)


def _show(done: Combined) -> None:
    emit_table(loss_table(done.losses, done.total))
    head = f", and an unchanged head ({', '.join(done.head)})" if done.head else ""
    emit(f"parameters: {count(done.parameters)}{head}")
    if done.exact:
        worst = max(loss.relative_error for loss in done.losses.values())
        emit(f"verified: each module's update is the weighted sum, to {shown_error(worst)} at most")
    else:
        emit(f"error of the combined update: {shown_error(done.total.relative_error)}, measured on "
             "the written file")  # fmt: skip


def _facts(done: Combined, weights: Sequence[float], rule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rule": dict(rule),
        "weights": list(weights),
        "verified": done.exact,
        "relative_error": done.total.relative_error,
        "parameters": done.parameters,
        "modules": module_facts(done.losses),
        "notes": list(done.notes),
    }
