"""Scores on the rows that choose the checkpoint: what may be looked at to choose among runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sora_cli.compare.runs import Run
from sora_cli.path.record import SELECTION
from sora_cli.report import RunReport

_PREFIX = "eval_"


def selection_scores(report: RunReport) -> dict[int, float]:
    """Step -> main metric, of every evaluation so far."""
    key = f"{_PREFIX}{report.main_metric}"
    return {entry["step"]: entry[key] for entry in report.history if key in entry}


def selection_score(report: RunReport) -> float | None:
    """The main metric of the weights that were kept; None where they were never evaluated."""
    return selection_scores(report).get(report.best_step or report.steps or 0)


def on_selection_rows(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs with their main metric on the rows for selection in the place of those reported.

    Returns:
        The runs, and a line for each that was never evaluated there and is left out.
    """
    found, left_out = [], []
    for run in runs:
        score = selection_score(run.report)
        if score is None:
            left_out.append(f"{run.directory}: not evaluated on its rows for selection")
            continue
        metrics = {SELECTION: {run.report.main_metric: score}}
        found.append(replace(run, report=run.report.model_copy(update={"metrics": metrics})))
    return found, left_out
