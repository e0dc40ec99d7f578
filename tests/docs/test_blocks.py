"""Every shell and Python block of the documentation runs as it stands, or says why it does not.

A page is one session: its blocks run in order in one directory, with `sora` and `python` on the
path, the checkout's recipes in `recipes/` and its runs in `docs/results/*.jsonl`. Before a block
may stand `<!-- not run: REASON -->`; `<!-- file: NAME -->`: then it is written to that file; or
`<!-- fails: 2 -->`: then it must end with that exit code. Each command is a process: a fork of one
in which this project is imported (`tests.warm`), but for those of the tutorial that people start
with, which are new ones of Python as far as its first training. What the pages call SmolLM2 are its
first layers: 20 s of each training are the others'.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig

from tests import smollm2, warm
from tests.docs.pages import DOCS, PAGES, Block, blocks, name_of
from tests.run_folder import made_once
from tests.shared_files import ROOT

RUNS = tuple(
    f"docs/results/{name}.jsonl"
    for name in ("runs", "alpha", "arena", "precision", "preferences", "retrieval", "scores")
)
COLD = DOCS / "tutorials" / "first-run.md"
LANGUAGES = {"sh", "python", "text", "yaml", "json", "csv", "toml"}
"""What fences may name: a block in another language would be neither run nor excused."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_run_or_say_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"line {block.line}: language '{block.language}'"
        if block.mark:
            assert block.note, f"line {block.line}: no reason or file name"


@pytest.mark.long
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.runs for block in blocks(page))], ids=name_of
)
def test_session(page: Path, tmp_path: Path, small: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    for runs in RUNS:
        shutil.copy(ROOT / runs, tmp_path / runs)
    forked = warm.python("tests.docs.loaded", str(small))
    environment = _environment(tmp_path / ".bin", small)
    _write_commands(tmp_path / ".bin", sys.executable if page == COLD else forked)
    for block in blocks(page):
        if block.mark == "file":
            file = tmp_path / block.note
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.runs:
            _run(block, tmp_path, environment)
            if "sora train" in block.text:
                _write_commands(tmp_path / ".bin", forked)
    if page.name == "your-own-trainer.md":
        assert PeftConfig.from_pretrained(tmp_path / "out" / "adapter").modules_to_save


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a package that stands for SmolLM2's."""
    return made_once(tmp_path_factory, "small-smollm2", smollm2.write_package)


def _environment(commands: Path, small: Path) -> dict[str, str]:
    """Return the variables of a session."""
    return {
        **warm.ENVIRONMENT,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{small}{os.pathsep}{ROOT}",
        "HF_HUB_OFFLINE": "1",
    }


def _write_commands(folder: Path, python: str) -> None:
    """Write the commands that are this checkout's, run by this Python."""
    folder.mkdir(exist_ok=True)
    for name, words in (("python", ""), ("sora", " -m sora_cli")):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{python}"{words} "$@"\n', encoding="utf-8")
        command.chmod(0o755)


def _run(block: Block, directory: Path, environment: dict[str, str]) -> None:
    script = directory / ".block"
    script.write_text(block.text, encoding="utf-8")
    runner = ["bash", "-eu"] if block.language == "sh" else [f"{directory}/.bin/python"]
    done = subprocess.run(
        [*runner, str(script)],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    code = int(block.note) if block.mark == "fails" else 0
    assert done.returncode == code, f"line {block.line}, exit code {done.returncode}:\n{said}"
