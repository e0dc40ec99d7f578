"""Streams that cannot be written, or take ASCII only: no traceback, and the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sora_cli.core.streams import _replaced
from sora_cli.report import FILE_NAME
from tests.helpers_reports import report_of
from tests.shared_files import ROOT
from tests.sora_cli.adapter.test_spectra import SHAPES, write_peft
from tests.sora_cli.experiments.sweep.support import write_sweep
from tools.reference.commands import commands

SHOWN = [
    *([*name.split()[1:], "--help"] for name, _ in commands()),
    ["--version"],
    ["recipes", "list"],
    ["recipes", "show", "quickstart"],
    ["schema"],
    ["methods"],
    ["methods", "--json"],
    ["compare", "runs"],
    ["compare", "runs", "--format", "markdown"],
    ["sweep", "sweep.yaml", "--dry-run"],
]
"""Commands that only show something, and take no time."""
ADAPTERS = [["inspect", "a"], ["inspect", "a", "--json"], ["inspect", "a", "b"]]
WRITE = [["recipes", "copy", "rte", "--to", "copies"], ["compare", "runs", "-o", "page.md"],
         ["report", "runs/é0"]]  # fmt: skip
_PROGRAM = """
import json, sys
from sora_cli.app import run
from sora_cli.core.boundary import report_lost_output
from sora_cli.core.streams import open_streams
open_streams()
wanted = int(sys.argv[2])
wrong = [words for words in json.loads(sys.argv[1]) if run(words) != wanted]
sys.exit(77 if wrong else report_lost_output(0))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters, two runs and a sweep file."""
    folder = tmp_path_factory.mktemp("streams")
    for name in "ab":
        write_peft(folder / name, SHAPES)
    for seed in (0, 1):
        run = folder / "runs" / f"é{seed}"
        run.mkdir(parents=True)
        text = report_of(seed=seed).model_dump_json()
        (run / FILE_NAME).write_text(text, encoding="utf-8")
    write_sweep(folder, grid={"training.seed": [0, 1]})
    return folder


def _shell(line: str, *words: str, cwd: Path, **variables: str) -> tuple[int, str, bytes]:
    """Exit code, what was said, and stdout of a shell line, in which $@ is Python's command."""
    done = subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stderr.decode("utf-8", errors="replace"), done.stdout


def _all(line: str, folder: Path, called: list[list[str]], wanted: int = 0, **variables: str
         ) -> tuple[int, str, bytes]:  # fmt: skip
    words = ("-c", _PROGRAM, json.dumps(called), str(wanted))
    code, said, out = _shell(line, *words, cwd=folder, **variables)
    assert "Traceback" not in said + out.decode(errors="replace")
    assert "internal error" not in said
    assert "ignored" not in said
    return code, said, out


C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, C_LOCALE], ids=["io", "C"])
def test_ascii(folder: Path, variables: dict[str, str]) -> None:
    called = [*SHOWN, *ADAPTERS] if variables is C_LOCALE else SHOWN
    code, said, out = _all('"$@"', folder, called, **variables)
    assert code == 0, said
    assert out.isascii()
    assert b"mean +- std" in out


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_what_nobody_takes_is_dropped(folder: Path, closed: str) -> None:
    assert _all(f'"$@" {closed}', folder, SHOWN)[0] == 0


def test_a_pipe_whose_reader_is_gone(folder: Path) -> None:
    line = '"$@" | head -c 1; exit ${PIPESTATUS[0]}'
    code, said, out = _all(line, folder, SHOWN)
    assert (code, len(out)) == (0, 1), said
    line = '"$@" 2> >(exec <&-)'
    assert _all(line, folder, [["trian"]] * 3, wanted=2)[0] == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('"$@" > /dev/full', "no space left on device"),
        ('ulimit -f 8; "$@" > file', "file too large"),
    ],
)
def test_lost_output_is_told_once(folder: Path, line: str, reason: str) -> None:
    code, said, _ = _all(line, folder, SHOWN)
    assert code == 2
    assert said.splitlines()[-1] == f"error: stdout cannot be written: {reason}"
    assert said.count("error: ") == 1


def test_files_that_may_not_grow(folder: Path) -> None:
    _, said, _ = _all('ulimit -f 0; "$@"', folder, WRITE, wanted=2)
    assert said.count("error: ") == len(WRITE)
    assert said.lower().count("file too large") == len(WRITE)
    assert not [path for path in (folder / "copies").rglob("*") if path.is_file()]
    _, said, _ = _all('ulimit -f 0; "$@"', folder, ADAPTERS[:1], wanted=2)
    assert "no temporary file can be written" in said
    assert "TMPDIR=DIR" in said


def test_the_program_itself(folder: Path) -> None:
    """`python -m sora_cli` opens the streams, and says at its end what was lost."""
    module = ("-m", "sora_cli")
    assert _shell('"$@" >&-', *module, "schema", cwd=folder)[:2] == (0, "")
    lost = "error: stdout cannot be written: no space left on device\n"
    assert _shell('"$@" > /dev/full', *module, "schema", cwd=folder)[:2] == (2, lost)
    mistake = _shell('"$@" > /dev/full', *module, "schema", "--foo", cwd=folder)
    assert mistake[0] == 2
    assert "No such option" in mistake[1]
    gone = 'mkdir gone; cd gone; rmdir ../gone; "$@"'
    code, said, _ = _shell(gone, *module, "sweep", str(folder / "sweep.yaml"), cwd=folder)
    assert code == 2
    assert said.startswith("error: the current directory has been deleted\n")


def test_what_an_encoding_lacks() -> None:
    text = "±1² é 😀 \ud800"
    expected = "+-1^2 \\u00e9 \\ud83d\\ude00 \\ud800"
    position, shown = 0, ""
    while position < len(text):
        if text[position].isascii():
            shown, position = shown + text[position], position + 1
            continue
        error = UnicodeEncodeError("ascii", text, position, position + 1, "")
        part, position = _replaced(error)
        shown += part
    assert shown == expected
    assert json.loads(f'"{shown[6:25]}"') == "é 😀"
