"""What comes before the first step of every command that trains: `train`, `path`, `auto`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sora_cli.core.atomic import tidy
from sora_cli.core.console import say, say_notes
from sora_cli.core.processes import is_main
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import RunReport
from sora_cli.run.layers import describe_layers
from sora_cli.run.prepare import Prepared, prepare
from sora_cli.run.preview import start_lines
from sora_cli.train.log import ReportLog
from sora_cli.train.machine import set_deterministic


def begin(recipe: Recipe, log: ReportLog[Any], output: Path) -> Prepared:
    """Load data and model, and delete what a killed process left half-written in the directory."""
    set_deterministic(recipe.training.deterministic)  # before the first computation on a GPU
    ready = prepare(recipe, log.phase)
    if is_main() and output.is_dir():
        tidy(output)
    return ready


def tell_start(recipe: Recipe, ready: Prepared, report: RunReport) -> None:
    """Print what is trained, on which rows.

    Args:
        report: of the run, or the part that several runs share.
    """
    if report.start is not None:
        say(report.start.sentence())
    say_notes(report.events)
    for line in start_lines(ready):
        say(line)
    say(describe_layers(recipe, ready, report.parameters))
