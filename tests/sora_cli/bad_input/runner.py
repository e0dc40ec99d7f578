"""One bad input after the other: what a case is made of, and what must be true of all of them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.report import RunReport
from tests import warm
from tests.shared_files import ROOT

HERE = "# here"
"""Marks the line of a recipe that an error is to name."""
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
    """Bad input and what the error must say.

    Attributes:
        says: parts of the error that name what is wrong.
        at: file and a text in it: the error names that line. Without: a recipe with a mark is it.
        then: part of the error that says what to do.
        files: what lies in the working directory, beside what is on the desk.
    """

    says: tuple[str, ...]
    words: tuple[str, ...] = TRAIN
    at: tuple[str, str] | None = None
    then: str = ""
    files: Mapping[str, Content] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str] | None:
        """File and text of the line to be named."""
        marked = [
            name for name, made in self.files.items() if isinstance(made, str) and HERE in made
        ]
        return self.at or ((marked[0], HERE) if marked else None)


def recipe(block: str = "", *lines: str) -> str:
    """The usual recipe with lines put into a block, the first marked; the same keys give way."""
    if not lines:
        return RECIPE
    keys = tuple(f"  {line.split(':')[0]}:" for line in lines)
    added = [f"  {lines[0]}  {HERE}", *(f"  {line}" for line in lines[1:])]
    made, inside = [], False
    for line in RECIPE.splitlines():
        inside = line == f"{block}:" if not line.startswith(" ") else inside
        if not (inside and line.startswith(keys)):
            made.append(line)
        if line == f"{block}:":
            made += added
    assert HERE in "\n".join(made)
    return "\n".join(made) + "\n"


def bad(says: str, *words: str, then: str = "", at: tuple[str, str] | None = None,
        **files: Content) -> Case:  # fmt: skip
    """A case; texts for a name without a dot are recipes: "r" is r.yaml."""
    named = {
        f"{name}.yaml" if "." not in name and not callable(made) else name: made
        for name, made in files.items()
    }
    return Case((says,), words or TRAIN, at, then, named)


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
) -> str:
    """Run a case in this process, and hold the result against all rules; the error it shows.

    The desk itself is the working directory of a case without files: nothing may change there.
    """
    if case.files:
        lay_out(case.files, folder, desk)
    here = folder if case.files else desk
    monkeypatch.chdir(here)
    before = snapshot(here)
    capfd.readouterr()
    code = run(case.words)
    shown = capfd.readouterr()
    return judge(case, here, before, code, shown.out, shown.err)


def check_process(case: Case, folder: Path, desk: Path) -> str:
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
    return judge(case, folder, before, done.returncode, done.stdout, done.stderr)


def judge(
    case: Case, folder: Path, before: Mapping[str, str], code: int, out: str, err: str
) -> str:
    """The rules: exit code 2, three lines, what, where, what to do, and nothing changed."""
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
    assert all(said in text for said in case.says), text
    assert not [word for word in JARGON if word in text], text
    if case.place is not None:
        assert re.search(rf"(?<![\w/]){re.escape(line_of(folder, *case.place))}(?!\d)", text), text
    assert case.then in text, text
    assert snapshot(folder) == before
    return text


def line_of(folder: Path, name: str, part: str) -> str:
    """ "r.yaml:7": the one line of a file that holds a text."""
    lines = (folder / name).read_bytes().split(b"\n")
    found = [number for number, line in enumerate(lines, 1) if part.encode() in line]
    assert len(found) == 1, f"{part!r} is in {len(found)} lines of {name}"
    return f"{name}:{found[0]}"


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below a directory: path -> digest of the content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts  # Python's own, of a file that --code imports
    }
