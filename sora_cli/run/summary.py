"""The end of a run for a person: scores, ranks, files, and the next commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sora_cli.adapter.places import MODEL, baseline_folder
from sora_cli.core.console import count, emit, say, say_notes
from sora_cli.core.processes import world_size
from sora_cli.core.shell import as_operand, quote, resumes, resuming
from sora_cli.recipe.families import families
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.reading import EVAL, words_read
from sora_cli.report import FILE_NAME, HISTORY_FILE, RunReport
from sora_cli.run.output import RANKS_PLOT, REFERENCE, RESULTS
from sora_cli.train.checkpoint.places import FOLDER, checkpoint_paths

_PHASES = 5  # longest phases that are printed


def conclude(
    report: RunReport, output: Path, words: Sequence[str], *, summary: bool = True
) -> None:
    """Print a finished run's result to stdout, and its files and next commands to stderr.

    Args:
        words: the recipe and its overrides, as typed.
        summary: print the result; False: only files and commands.
    """
    if summary:
        emit("\n".join(result_lines(report)))
    say_notes(report.events)
    # a run without a step has neither checkpoints nor a history
    names = [*RESULTS, FOLDER, HISTORY_FILE, RANKS_PLOT, REFERENCE, FILE_NAME]
    there = [output / name for name in names if (output / name).exists()]
    files = "  ".join(f"{place.name}/" if place.is_dir() else place.name for place in there)
    say(f"\nfiles in {output}/: {files}")
    say("next:")
    for command in next_commands(report, output, words):
        say(f"  {command}")


def next_commands(report: RunReport, output: Path, words: Sequence[str]) -> list[str]:
    """Return the commands that use a finished run.

    Args:
        words: the recipe and its overrides, as typed.
    """
    folder = baseline_folder(output) if not report.ranks else None
    if folder is not None:
        return _of_baseline(folder, words)
    _, family = families().get(report.recipe.get("task", {}).get("name"), (None, None))
    writes = family is not None and family.HUB_TASK == "text-generation"
    whole = report.recipe.get("task", {}).get("adapt", "both") == "both"
    return [
        *([f"sora chat {quote(str(output))}"] if writes else []),
        f"sora inspect {quote(str(output))}",
        f"sora prune {quote(str(output))} -o {quote(f'{output}/pruned')} --energy 0.99",
        *([f"sora merge {quote(str(output))} -o {quote(f'{output}/merged')}"] if whole else []),
    ]


def how_to_resume(output: Path, words: Sequence[str]) -> list[str]:
    """Return the last checkpoint of an interrupted run, and the command to resume the run.

    Args:
        words: the recipe and its overrides, as typed.
    """
    checkpoints = checkpoint_paths(output / FOLDER)
    given = sys.argv[1:] if resumes(sys.argv[1:]) else ["train", as_operand(words[0]), *words[1:]]
    command = resuming(["sora", *given])
    if world_size() > 1:
        command = f"the same command with --resume ({command})"
    if not checkpoints:
        return [f"no checkpoint yet; to start again: {command}"]
    return [f"kept: {checkpoints[-1]}", f"to resume: {command}"]


def result_lines(report: RunReport) -> list[str]:
    """Return the score, ranks and parameters of a run, a line each."""
    lines = []
    for split, scores in report.metrics.items():
        text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        lines.append(f"{split}: {text}")
    if report.best_step is not None and report.best_step != report.steps:
        lines.append(f"weights of step {report.best_step} of {report.steps}, the best evaluated")
    p = report.parameters
    if not report.ranks:
        of = f"{count(p.adapter_end)} of the base model's {count(p.base - p.head)}"
        return [*lines, f"trained parameters: {of}, head {count(p.head)}"]
    start = sum(m.start for m in report.ranks.values())
    end = sum(m.end for m in report.ranks.values())
    dead = sum(m.end == 0 for m in report.ranks.values())
    share = end / start if start else 0.0
    lines.append(
        f"components: {end} of {start} kept ({share:.0%}), "
        f"{dead} of {len(report.ranks)} layers left out"
    )
    lines.append(
        f"adapter parameters: {count(p.adapter_end)} of {count(p.adapter_start)} at the start, "
        f"head {count(p.head)}"
    )
    return lines


def _of_baseline(folder: Path, words: Sequence[str]) -> list[str]:
    """Return the commands that use a baseline's result."""
    run, (recipe, *overrides) = str(folder.parent), words
    # the result names its base model, also if that has moved
    read = words_read(partial(load_recipe, recipe), overrides, EVAL.without("model.path"))
    commands = [
        shlex.join(["sora", "eval", as_operand(run), "--recipe", as_operand(recipe), *read])
    ]
    if folder.name == MODEL:
        commands.append(f"sora verify {quote(str(folder))}")
    return commands


def time_line(report: RunReport) -> str:
    """Return the total seconds of a run, and its longest phases."""
    spent = report.seconds
    largest = sorted(spent, key=lambda name: -spent[name])[:_PHASES]
    text = ", ".join(f"{name} {spent[name]:.1f}" for name in largest)
    return f"time: {sum(spent.values()):.1f} s ({text})"
