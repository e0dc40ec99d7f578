"""A process for each kind, so that no command of one kind can change the result of another's."""

from __future__ import annotations

import datetime
import json
import platform
import shutil
from pathlib import Path

import peft
import torch
import transformers

import sora_cli.merge.extract
import sora_cli.merge.merge
import sora_cli.run.start
import sora_cli.verify.verification  # noqa: F401 (imported once, for all processes)
from sora_cli.app import run as run_command
from sora_cli.commands import inspect
from sora_cli.core.console import say
from tools.corpus.forks import Failure, in_forks
from tools.corpus.kinds import chosen, write, written
from tools.corpus.record import Places, Row, captured, recorded, scratch
from tools.corpus.verbs import PICKS, STEPS, Step, command, matches

_LIMIT = 900
"""Seconds for all commands of one kind."""


class _Today(datetime.date):
    """A day that stays: notes on the age of a rule would change a record."""

    @classmethod
    def today(cls) -> _Today:
        return cls(2026, 11, 30)


def make(folder: Path, kinds: str, jobs: int) -> int:
    """Write kinds into a folder; name those that the installed PEFT cannot write."""
    failed = 0
    for name, error in in_forks(chosen(kinds), lambda name: _write(name, folder), jobs, _LIMIT):
        if isinstance(error, Failure):
            failed += 1
            shutil.rmtree(folder / name, ignore_errors=True)
            say(f"left out: {name}: {error.text.splitlines()[-1][:200]}")
    say(f"{len(chosen(kinds)) - failed} kinds in {folder}")
    return 0


def _write(name: str, folder: Path) -> None:
    with captured():
        write(name, folder)


def run(folder: Path, out: Path, kinds: str, verbs: str, jobs: int) -> int:
    """Write the record of all commands on the kinds in a folder."""
    places = dict(written(folder, kinds))
    steps = [step for step in (*STEPS, *PICKS) if matches(step.name, verbs)]
    rows = {}

    def work(name: str) -> dict[str, Row]:
        return _rows(places[name], folder, [s for s in steps if matches(name, s.kinds)])

    for name, found in in_forks(places, work, jobs, _LIMIT):
        rows[name] = {"process": {"stderr": found.text}} if isinstance(found, Failure) else found
        say(f"{name}: {len(rows[name])} rows")
    about = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "processor": f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}",
    }
    record = {"about": about, "rows": dict(sorted(rows.items()))}
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    say(f"{sum(map(len, rows.values()))} rows of {len(rows)} kinds in {out}")
    return 0


def _rows(places: dict[str, Path], folder: Path, steps: list[Step]) -> dict[str, Row]:
    """Run the steps on one kind, in an empty directory."""
    inspect.date = _Today  # type: ignore[attr-defined]
    rows: dict[str, Row] = {}
    done: dict[str, Path] = {}
    with scratch() as here:
        hidden = Places({folder: "CORPUS", here: "OUT"})
        for step in steps:
            words = command(step, places, done)
            if words is None:
                continue
            out = None
            if step.output is not None:
                out = here / f"{step.name.replace('/', '-')}{step.output}"
                words += [f"{step.option}{out}"] if "=" in step.option else [step.option, str(out)]
            # a run's report has times; its adapter is the result
            result = out / "adapter" if out and "=" in step.option else out
            rows[step.name] = recorded(run_command, words, result, hidden)
            if out is not None and out.exists():
                done[step.name] = out
    return rows
