"""Folders that the first process of a test run makes, and that all of its processes share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of this run of the tests, which no other run sees."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of the run, for reading; `make` fills it, in the process that asks first."""
    folder = run_folder(factory) / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f".{name}.lock")):
        if not folder.exists():
            made = Path(tempfile.mkdtemp(dir=folder.parent))
            make(made)
            made.rename(folder)
    return folder
