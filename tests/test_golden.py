"""Stored messages: what differs fails and says how, what is no longer told fails, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import golden
from tests.shared_files import ROOT

TESTS = """\
import pytest
from tests import golden

@pytest.mark.parametrize("word", ["a / b", "c"])
def test_one(word, tmp_path):
    golden.told(f"error: {word} in {tmp_path}/x.txt\\n\\ntook 1.5 s \\n")

def test_two():
    golden.told("first", hide="[aeiou]")
    golden.told("second")

def test_new():
    golden.told("new")

def test_less():
    golden.told("told")

def test_stale(request):
    assert golden.stale(request.config) == []
"""
STORED = """\
test_less
    told

test_new
    new

test_one[a / b]
    error: a / b in TMP/x.txt

    took N s

test_one[c]
    error: c in TMP/x.txt

    took N s

test_two
    f~rst

test_two / 2
    second
"""
WRONG = (
    STORED.replace("second", "another")
    .replace("test_new\n    new\n\n", "")
    .replace("told\n", "told\n\ntest_less / 2\n    no longer told\n\ntest_gone\n    gone\n", 1)
)


def _pytest(folder: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Run pytest in a folder of its own; its exit code and what it prints."""
    base = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "tests.golden", *words],
        cwd=folder,
        env={**base, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_what_is_told_and_what_is_stored_must_be_the_same(tmp_path: Path) -> None:
    """It fails and says how; two processes then store it; CI never does."""
    stored = tmp_path / "tests/messages/test_a.txt"
    stored.parent.mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (tmp_path / "tests/test_a.py").write_text(TESTS)
    stored.write_text(WRONG)
    code, said = _pytest(tmp_path)
    assert code == 1
    assert "4 failed, 2 passed" in said
    for words in (
        "- another", "+ second", f"the message of test_new is not in {stored}", "['test_less / 2']",
        f"'{stored}: test_gone'",
        "pytest -n 0 --write-messages 'tests/test_a.py::test_two'",
    ):  # fmt: skip
        assert words in said
    assert _pytest(tmp_path, "--write-messages", CI="true")[0] == pytest.ExitCode.USAGE_ERROR
    assert stored.read_text() == WRONG
    _pytest(tmp_path, "--write-messages", "-n", "2")
    assert stored.read_text() == STORED
    assert _pytest(tmp_path)[0] == 0


def test_each_stored_message_has_a_test(request: pytest.FixtureRequest) -> None:
    assert golden.stale(request.config) == []
