"""One bad input after the other: what a case is made of, and what must be true of all of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sora_cli.report import RunReport
from tests import warm
from tests.golden import told
from tests.helpers_errors import called
from tests.shared_files import ROOT

RECIPE = """\
model:
  path: models/base
task:
  name: sequence-classification
data:
  files: {train: train.jsonl, validation: validation.jsonl}
method:
  name: sora
  r_max: 2
training:
  epochs: 1
  batch_size: 8
output:
  dir: out
"""
PATH = RECIPE.replace(
    "output:",
    "path:\n  vary: method.threshold\n  schedule: {start: 0, stop: 1, num: 2}\noutput:",
)
SWEEP = "recipe: r.yaml\ngrid: {training.seed: [0, 1]}\n"
FINISHED = RunReport(name="r", recipe={}, status="completed").model_dump_json()
TRAIN = ("train", "r.yaml")
JARGON = ("pydantic", "validation error", "type=", "union")
Content = str | bytes | Callable[[Path], object]
"""A file's text or bytes; or a function that makes what is to be at a path."""


@dataclass(frozen=True)
class Case:
    """A command line, and files that lie in the working directory beside what is on the desk."""

    words: tuple[str, ...]
    files: Mapping[str, Content]


def recipe(block: str = "", *lines: str) -> str:
    """The usual recipe with lines put into a block; the same keys give way."""
    keys = tuple(f"  {line.split(':')[0]}:" for line in lines)
    made, inside = [], False
    for line in RECIPE.splitlines():
        inside = line == f"{block}:" if not line.startswith(" ") else inside
        if not (inside and line.startswith(keys)):
            made.append(line)
        if line == f"{block}:":
            made += [f"  {line}" for line in lines]
    return "\n".join(made) + "\n"


def bad(*words: str, **files: Content) -> Case:
    """A case; texts for a name without a dot are recipes: "r" is r.yaml."""
    named = {
        f"{name}.yaml" if "." not in name and not callable(made) else name: made
        for name, made in files.items()
    }
    return Case(words or TRAIN, named)


def lay_out(files: Mapping[str, Content], folder: Path, desk: Path) -> None:
    """A working directory: a copy of the desk, and more files."""
    shutil.copytree(desk, folder, dirs_exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def check(
    case: Case,
    folder: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Run a case in this process, and hold the result against all rules.

    The desk itself is the working directory of a case without files: nothing may change there.
    """
    if case.files:
        lay_out(case.files, folder, desk)
    here = folder if case.files else desk
    monkeypatch.chdir(here)
    before = snapshot(here)
    capfd.readouterr()
    code = called(case.words)
    shown = capfd.readouterr()
    judge(case, here, before, code, shown.out, shown.err)


def check_process(case: Case, folder: Path, desk: Path) -> None:
    """The same in a process of its own."""
    lay_out(case.files, folder, desk)
    before = snapshot(folder)
    done = subprocess.run(
        [warm.python(), "-m", "sora_cli", *case.words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    judge(case, folder, before, done.returncode, done.stdout, done.stderr)


def judge(
    case: Case, folder: Path, before: Mapping[str, str], code: int, out: str, err: str
) -> None:
    """The rules: exit code 2, three lines, those that are stored, and nothing changed."""
    assert code == 2, err
    assert out == "" or "--plot" in case.words  # the picture is drawn after the table is shown
    assert "Traceback" not in err
    lines = err.splitlines()
    first = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(first) == 1, err
    error = [line for line in lines[first[0] :] if line.strip()]
    text = "\n".join(error)
    assert len(error) <= 3, text
    assert all(len(line) < 500 and line.isprintable() for line in error), text
    assert not [word for word in JARGON if word in text], text
    assert snapshot(folder) == before
    told(text)


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a directory: path -> digest of the content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts  # Python's own, of a file that --code imports
    }
