"""Every shell and Python block of the documentation runs as it stands, or says why it does not.

A page is one session: its blocks run in order in one directory, with `sora` and `python` on the
path, the checkout's recipes in `recipes/` and its runs in `docs/results/*.jsonl`. Before a block
may stand `<!-- not run: REASON -->`; `<!-- file: NAME -->`: then it is written to that file; or
`<!-- fails: 2 -->`: then it must end with that exit code. Each command is a process; those of the
tutorial that people start with are new ones of Python, all others are forks of `tests.warm`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig

from tests import warm
from tests.docs.pages import DOCS, PAGES, Block, blocks, name_of
from tests.shared_files import ROOT

RUNS = tuple(f"docs/results/{name}.jsonl" for name in ("runs", "arena", "precision", "preferences"))
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
def test_session(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    for runs in RUNS:
        shutil.copy(ROOT / runs, tmp_path / runs)
    python = sys.executable if page == COLD else warm.python()
    environment = _environment(tmp_path / ".bin", python)
    for block in blocks(page):
        if block.mark == "file":
            file = tmp_path / block.note
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.runs:
            _run(block, tmp_path, environment)
    if page.name == "your-own-trainer.md":
        assert PeftConfig.from_pretrained(tmp_path / "out" / "adapter").modules_to_save


def _environment(folder: Path, python: str) -> dict[str, str]:
    """Return the variables of a session; `folder` gets the commands that are this checkout's."""
    folder.mkdir()
    for name, words in (("python", ""), ("sora", " -m sora_cli")):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{python}"{words} "$@"\n', encoding="utf-8")
        command.chmod(0o755)
    return {
        **warm.ENVIRONMENT,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }


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
