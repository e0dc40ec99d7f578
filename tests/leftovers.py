"""A test that changes its process and leaves it so fails; the next one starts as the first one did.

What follows in that process is else of another test's making: files of the repository are not found
by relative paths, and torch with two threads adds in another order, and is slow where pytest runs
three processes. A plugin of pytest, which `conftest.py` loads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_STARTED_IN = Path.cwd()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Look after the fixtures have put back what they have changed."""
    yield
    left = []
    if not Path().samefile(_STARTED_IN):
        os.chdir(_STARTED_IN)
        left.append("another working directory: monkeypatch.chdir puts it back")
    torch = sys.modules.get("torch")
    if torch is not None and (threads := torch.get_num_threads()) != 1:
        torch.set_num_threads(1)
        left.append(f"torch with {threads} threads")
    if left:
        pytest.fail(f"it leaves {' and '.join(left)}")
