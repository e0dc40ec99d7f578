"""A test that leaves its process changed is named; the next one starts as the first one did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.shared_files import ROOT

TESTS = """\
import os
from pathlib import Path
import torch

def test_puts_it_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

def test_leaves_it(tmp_path):
    os.chdir(tmp_path)

def test_removes_it(tmp_path):
    os.chdir(tmp_path)
    tmp_path.rmdir()

def test_leaves_threads():
    torch.set_num_threads(2)

def test_next():
    assert Path("test_a.py").exists()
    assert torch.get_num_threads() == 1
"""
LEAVE = ["leaves_it", "removes_it", "leaves_threads"]
TORCH = """\
threads = 1

def get_num_threads():
    return threads

def set_num_threads(number):
    global threads
    threads = number
"""


def test_who_leaves_something_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(TESTS, encoding="utf-8")
    # the real one takes seconds to import
    (tmp_path / "torch.py").write_text(TORCH, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.leftovers", "--tb=line"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "5 passed, 3 errors" in done.stdout
    named = [line.split(" - ")[0] for line in done.stdout.splitlines() if line[:5] == "ERROR"]
    assert named == [f"ERROR test_a.py::test_{name}" for name in LEAVE]
