"""`sora pick`: choose an adapter of a path by size or score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import check_adapter_place, new_adapter_place
from sora_cli.commands import completion, options
from sora_cli.commands._files import RECORDS, check_files, output_folder
from sora_cli.core.console import emit, printable, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.table import emit_table
from sora_cli.experiments.path.pick import at_least, within_drop, within_parameters, within_share
from sora_cli.experiments.path.record import FILE_NAME, PathReport, Stage, read_path
from sora_cli.experiments.path.table import stage_table
from sora_cli.model.files import ADAPTER_CONFIG
from sora_cli.recipe.tolerance import parse_drop


def pick(
    directory: Annotated[
        Path, typer.Argument(help="The directory of a path.", autocompletion=completion.runs)
    ],
    *,
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep",
            help="Choose the smallest adapter that keeps this share of the first stage's score: "
            "0.99.",
        ),
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option(
            "--max-params", help="Choose the best adapter with at most this many parameters."
        ),
    ] = None,
    min_metric: Annotated[
        float | None,
        typer.Option(
            "--min-metric", help="Choose the smallest adapter whose score is at least this good."
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            help="Choose the smallest adapter whose score is at most this much worse than the "
            "first stage's: 0.01 in the metric's unit, or 1pt for one point.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        options.output("--output", "-o", help="Copy the chosen adapter to this directory."),
    ] = None,
    as_json: options.Json = False,
    force: options.Force = False,
) -> None:
    """Choose a stage of a path, and print the path's table; with `output`, copy its adapter."""
    report = _finished_stages(directory)
    if output is not None:
        read = [directory / name for name in RECORDS]
        check_files(output_folder("-o", output), read)
        check_adapter_place(output, force=force)
    stage = choose(
        report, keep=keep, max_params=max_params, min_metric=min_metric, max_drop=max_drop
    )
    adapter = directory / stage.directory / "adapter"
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise SoraError(f"the chosen adapter is missing: {adapter}")
    say_notes(result_remarks(adapter))
    if as_json:
        emit(json.dumps(_facts(report, stage, adapter), indent=2))
    else:
        emit_table(stage_table(report, stage.index))
        emit(f"stage {stage.index}: {printable(adapter)}")
    if report.choice == report.generalisation:
        say(f"note: chosen on {report.choice}, which is also the reported split: the score is "
            f"the best of {len(report.stages)}; data.selection=half-validation keeps the two "
            "apart")  # fmt: skip
    else:
        say(f"chosen on {report.choice} ({report.selection})")
    if output is not None:
        _copy(adapter, output, force=force)
        say(f"copied to {output}")


def choose(
    report: PathReport,
    *,
    keep: float | None = None,
    max_params: int | None = None,
    min_metric: float | None = None,
    max_drop: str | None = None,
) -> Stage:
    """Return the best stage for the given condition; exactly one condition must be given."""
    if sum(condition is not None for condition in (keep, max_params, min_metric, max_drop)) != 1:
        raise SoraError(
            "give exactly one condition",
            hint="--keep 0.99, --max-drop 1pt, --max-params 100000 or --min-metric 0.85",
        )
    if max_drop is not None:
        return within_drop(report, parse_drop(max_drop, report.main_metric))
    if keep is not None:
        return within_share(report, keep)
    if max_params is not None:
        return within_parameters(report, max_params)
    assert min_metric is not None
    return at_least(report, min_metric)


def _finished_stages(directory: Path) -> PathReport:
    report = read_path(directory)
    if report is None:
        problem = "is no directory" if not directory.is_dir() else f"holds no {FILE_NAME}"
        raise SoraError(f"{directory} {problem}", hint="make a path with: sora path RECIPE")
    if not report.stages:
        raise SoraError(
            f"{directory} has no finished stage", hint="continue with: sora path RECIPE"
        )
    missing = report.stage_count - len(report.stages)
    if missing:
        say(f"note: {missing} of {report.stage_count} stages are not trained yet")
    return report


def _facts(report: PathReport, stage: Stage, adapter: Path) -> dict[str, object]:
    return {
        "adapter": str(adapter),
        "stage": stage.index,
        report.vary: stage.value,
        "live": stage.live,
        "total": stage.total,
        "parameters": stage.parameters,
        "metric": report.main_metric,
        "chosen_on": report.choice,
        "metrics": stage.metrics,
        "relative": stage.relative,
    }


def _copy(adapter: Path, output: Path, *, force: bool) -> None:
    with new_adapter_place(output, force=force) as temporary:
        shutil.copytree(adapter, temporary, dirs_exist_ok=True)
