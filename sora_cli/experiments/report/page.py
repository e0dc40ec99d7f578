"""The page of `sora report`: one run or path as one HTML file; missing parts are named.

`html` explains its safety measures and its figures. Torch is not needed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.adapter.digest import changed_results, result_digest
from sora_cli.adapter.places import ADAPTER
from sora_cli.core.shell import as_operand, operands, resuming
from sora_cli.experiments.compare.notes import impossible_scores
from sora_cli.experiments.compare.runs import Run
from sora_cli.experiments.path.record import PathReport
from sora_cli.experiments.report.certificate import certificate_part, draw_sizes
from sora_cli.experiments.report.examples import Record
from sora_cli.experiments.report.facts import headline, memory_fact, phases, title
from sora_cli.experiments.report.html import picture, render
from sora_cli.experiments.report.parts import (
    curves_part,
    examples_part,
    modules_of,
    ranks_part,
    spectra_part,
)
from sora_cli.experiments.report.stages import (
    draw_stages,
    path_headline,
    path_next,
    path_part,
    path_title,
)
from sora_cli.recipe.changes import flat
from sora_cli.report import Report, RunReport
from sora_cli.run.summary import next_commands
from sora_cli.search.evidence import Evidence

FEW = 5
"""Default number of examples of each kind."""


def run_page(
    report: RunReport,
    directory: Path,
    *,
    records: Sequence[Record] = (),
    most: int = FEW,
    certificate: Evidence | None = None,
) -> str:
    """Return the HTML of a training run's page.

    Args:
        directory: of the run, as the user typed it.
        records: predictions by row; empty if none are stored.
        most: largest number of examples of each kind.
        certificate: of `sora auto`; None if the run has none.
    """
    run = Run.of(directory, report)
    modules, why_not = modules_of(report, directory)
    sections = {
        "curves": curves_part(report),
        "ranks": ranks_part(report, run.ranks, modules),
        "spectra": spectra_part(modules, why_not, directory) if report.ranks else None,
        "examples": examples_part(report, directory, records, most),
    }
    if certificate is not None:
        sections["certificate"] = certificate_part(certificate)
    return _render(
        report,
        directory,
        title=title(run),
        facts=headline(run),
        warnings=[
            *_ending(report),
            *impossible_scores(report),
            *_changes(report, directory, certificate),
        ],
        notes=_notes(report),
        next=_next(report, directory, certificate),
        curve=None if certificate is None else picture(draw_sizes(certificate), "curve"),
        sections=sections,
    )


def path_page(report: PathReport, run: Path) -> str:
    """Return the HTML of a path's page."""
    sections = {"path": path_part(report)} if report.stages else {}
    return _render(
        report,
        run,
        title=path_title(report),
        facts=path_headline(report),
        warnings=_ending(report),
        notes=[*report.recipe_notes, *([report.selection] if report.selection else [])],
        next=path_next(report, run),
        stages=picture(draw_stages(report), "stages") if report.stages else None,
        sections=sections,
    )


_SECTIONS = {
    "certificate": "Certificate",
    "path": "Stages",
    "notes": "Notes",
    "curves": "Curves",
    "ranks": "Ranks",
    "spectra": "Spectra",
    "examples": "Examples",
    "time": "Time",
    "recipe": "Recipe",
    "next": "Next",
}
"""Variable of the template -> heading, in the order of the page."""
_ALWAYS = ("notes", "time", "recipe", "next")


def _render(report: Report, run: Path, *, sections: dict[str, Any], **values: Any) -> str:
    """Fill in the template with the values common to all reports and with the given values.

    Args:
        sections: variable of the template -> content; the page leaves out missing sections.
    """
    parts = {name: sections.get(name) for name in _SECTIONS if name not in _ALWAYS}
    shown = [label for name, label in _SECTIONS.items() if name in _ALWAYS or parts[name]]
    settings = {".".join(path): value for path, value in flat(report.recipe)}
    # overrides of the command line, to mark their keys in the recipe
    given = (word.partition("=")[0] for word in report.command if "=" in word)
    memory = memory_fact(report)
    all_values: dict[str, Any] = {
        "curve": None,
        "stages": None,
        "sections": shown,
        "summary": _when(report),
        "phases": phases(report.seconds),
        "memory": memory[0] if memory else None,
        "environment": [
            (n, "none" if v is None else v) for n, v in report.environment.model_dump().items()
        ],
        "command": shlex.join(report.command),
        "recipe": recipe_lines(settings, given),
        "directory": str(run),
        **parts,
        **values,
    }
    return render(**all_values)


@dataclass(frozen=True)
class Line:
    """A line of YAML; the page highlights marked lines and explains the mark."""

    text: str
    marked: bool


def recipe_lines(settings: Mapping[str, Any], marked: Iterable[str]) -> tuple[Line, ...]:
    """Return settings as the YAML lines of a recipe; mark the lines of some keys.

    Args:
        settings: dotted key -> value.
        marked: dotted keys to mark.
    """
    import yaml

    keys = set(marked)
    lines: list[Line] = []
    open_blocks: list[str] = []
    for key, value in settings.items():
        *blocks, name = key.split(".")
        same = 0  # leading blocks shared with the key before: their lines are there already
        while same < min(len(blocks), len(open_blocks)) and blocks[same] == open_blocks[same]:
            same += 1
        for depth in range(same, len(blocks)):
            lines.append(Line(f"{'  ' * depth}{blocks[depth]}:", False))
        open_blocks = blocks
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
        text = text.strip().removesuffix("...").strip()
        lines.append(Line(f"{'  ' * len(blocks)}{name}: {text}", key in keys))
    return tuple(lines)


def _when(report: Report) -> str:
    times = [f"{name} {time.replace('T', ' ')[:16]} UTC"
             for name, time in (("started", report.started), ("ended", report.finished or ""))
             if time]  # fmt: skip
    return ", ".join([report.status, *times])


def _ending(report: Report) -> list[str]:
    """Return a warning if the run did not finish."""
    if report.status == "completed":
        return []
    if report.status == "running":
        return ["The run has not ended: it is still working, or its process was killed."]
    return [f"The run {_ENDINGS[report.status]}: {report.error or 'no reason is recorded'}"]


_ENDINGS = {"failed": "failed", "interrupted": "was interrupted"}


def _changes(report: RunReport, run: Path, certificate: Evidence | None) -> list[str]:
    """Return a warning for each result that differs from the report's or certificate's digest."""
    if report.status != "completed":
        return []
    lines = list(changed_results(run, report))
    if certificate is not None and result_digest(run / ADAPTER) != certificate.adapter:
        lines.append(f"{run / ADAPTER} is not the adapter that the certificate is for")
    return lines


def _notes(report: RunReport) -> list[str]:
    """Return the run's events and notes, and the verdict of the check of its written files."""
    verdict, reason = report.verification.verdict, report.verification.reason
    line = f"outputs of the files compared with the trained model's: {verdict}" if verdict else ""
    return [
        *report.events,
        *report.recipe_notes,
        *([f"{line}; {reason}" if reason else line] if line else []),
    ]


def _next(report: RunReport, run: Path, certificate: Evidence | None) -> list[str]:
    """Return commands to use a finished run, or the command that resumes an unfinished run."""
    if report.status != "completed":
        # `--force` would delete the checkpoints that `--resume` needs
        words = [word for word in report.command if word != "--force"]
        return [resuming(words)] if words else []
    words = operands(report.command[2:])
    verify = shlex.join(["sora", "verify", as_operand(str(run)), "--certificate"])
    commands = next_commands(report, run, words or ["RECIPE"])
    return commands if certificate is None else [verify, *commands]
