"""The tests of `tests/rehearsal`, in processes of their own: torch cannot forget their device.

With a real accelerator they run on that, without a rehearsal.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.rehearsal import fake
from tests.shared_files import ROOT

FILES = sorted(path.name for path in (ROOT / "tests" / "rehearsal").glob("test_*.py"))
HALF = "test_commands.py"  # as long as all others together; each process imports for seconds


@pytest.mark.skipif(fake.lacks() is not None, reason=str(fake.lacks()))
@pytest.mark.parametrize("files", [[HALF], [name for name in FILES if name != HALF]], ids="+".join)
def test_on_the_rehearsal_device(files: list[str], request: pytest.FixtureRequest) -> None:
    marks = request.config.option.markexpr  # with the long tests or without
    words = ["-n", "0", "-q", "--no-header", "-p", "no:cacheprovider", "-m", marks]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *(f"tests/rehearsal/{name}" for name in files)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        check=False,
    )
    assert done.returncode == 0, done.stdout
