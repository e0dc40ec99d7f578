"""The last words of a run: the score, the ranks kept, where the files are, what to type next."""

from __future__ import annotations

from pathlib import Path

from sora_cli.console import count, emit, say
from sora_cli.report import RunReport

_PHASES = 5  # shown of the time


def conclude(report: RunReport, output: Path) -> None:
    """Print a finished run's result to stdout and what to do with it to stderr."""
    emit("\n".join(result_lines(report)))
    for event in report.events:
        say(f"note: {event}")
    say(f"\nfiles in {output}/: adapter/  checkpoints/  report.json  ranks.png")
    say("next:")
    say(f"  sora inspect {output}")
    say(f"  sora prune {output} -o {output}/pruned --energy 0.99")
    say(f"  sora merge {output} -o {output}/merged")


def result_lines(report: RunReport) -> list[str]:
    """Score, ranks and parameters of a run, a line each."""
    lines = []
    for split, scores in report.metrics.items():
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        lines.append(f"{split}: {shown}")
    if report.best_step is not None and report.best_step != report.steps:
        lines.append(f"weights of step {report.best_step} of {report.steps}, the best evaluated")
    start = sum(m.start for m in report.ranks.values())
    end = sum(m.end for m in report.ranks.values())
    dead = sum(m.end == 0 for m in report.ranks.values())
    share = end / start if start else 0.0
    lines.append(
        f"components: {end} of {start} kept ({share:.0%}), "
        f"{dead} of {len(report.ranks)} layers left out"
    )
    p = report.parameters
    lines.append(
        f"adapter parameters: {count(p.adapter_end)} of {count(p.adapter_start)} at the start, "
        f"head {count(p.head)}"
    )
    return lines


def time_line(report: RunReport) -> str:
    """Seconds in all, and the phases that took most of them."""
    spent = report.seconds
    largest = sorted(spent, key=lambda name: -spent[name])[:_PHASES]
    shown = ", ".join(f"{name} {spent[name]:.1f}" for name in largest)
    return f"time: {sum(spent.values()):.1f} s ({shown})"
