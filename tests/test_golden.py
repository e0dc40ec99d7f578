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
from tests.golden import told

@pytest.mark.parametrize("word", ["a / b", "c"])
def test_one(word, tmp_path):
    told(f"error: {word} in {tmp_path}/x.txt\\n\\ntook 1.5 s \\n")

def test_two():
    told("first", hide="[aeiou]")
    told("second")
"""
STORED = """\
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


class Project:
    """A folder with one file of tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tests, self.stored = folder / "tests/test_a.py", folder / "tests/messages/test_a.txt"
        self.tests.parent.mkdir()
        (folder / "pytest.ini").touch()
        self.tests.write_text(TESTS)

    def pytest(self, *words: str, **variables: str) -> tuple[int, str]:
        """Run pytest there; its exit code and what it prints."""
        base = {name: value for name, value in os.environ.items() if name != "CI"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.golden", "--import-mode=importlib",
             "-p", "no:cacheprovider", *words],
            cwd=self.folder,
            env={**base, "PYTHONPATH": str(ROOT), **variables},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.stored.parent.mkdir()
    made.stored.write_text(STORED)
    return made


def test_two_processes_store_what_then_passes(project: Project) -> None:
    project.stored.write_text("test_two / 3\n    no longer told\n\ntest_three\n    gone\n")
    assert project.pytest("--write-messages", "-n", "2")[0] == 0
    assert project.stored.read_text() == STORED
    assert project.pytest()[0] == 0


def test_a_difference_is_shown_with_the_command_that_stores_it(project: Project) -> None:
    project.tests.write_text(TESTS.replace('"second"', '"third"'))
    code, said = project.pytest()
    assert code == 1
    assert "- second" in said
    assert "+ third" in said
    command = "--write-messages 'tests/test_a.py::test_two'"
    assert f"pytest -n 0 {command}" in said
    assert project.pytest("--write-messages", "tests/test_a.py::test_two")[0] == 0
    assert project.stored.read_text() == STORED.replace("second", "third")


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (STORED.partition("test_two / 2")[0], "is not in"),
        (f"{STORED}\ntest_two / 3\n    third\n", "['test_two / 3']"),
    ],
)
def test_what_was_not_stored_or_not_told_fails(project: Project, stored: str, says: str) -> None:
    project.stored.write_text(stored)
    code, said = project.pytest()
    assert code == 1
    assert says in said
    assert "1 failed, 2 passed" in said


def test_ci_stores_nothing(project: Project) -> None:
    project.stored.unlink()
    assert project.pytest("--write-messages", CI="true")[0] == pytest.ExitCode.USAGE_ERROR
    assert not project.stored.exists()


def test_a_stored_message_has_a_test(request: pytest.FixtureRequest) -> None:
    assert golden.stale(request.config) == []


def test_a_stored_message_without_a_test_is_found(project: Project) -> None:
    (project.stored.parent / "test_b.txt").write_text("test_x\n    y\n")
    project.stored.write_text(f"{STORED}\ntest_three\n    gone\n")
    project.tests.write_text(
        f"{TESTS}\nfrom tests import golden\n\n"
        "def test_stale(request):\n    print(golden.stale(request.config))\n    assert False\n"
    )
    said = project.pytest("-k", "stale")[1]
    assert "test_a.txt: test_three'" in said
    assert "test_b.txt'" in said
    assert "test_one" not in said
