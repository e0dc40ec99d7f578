"""A command in a process that is killed inside a write."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

from tests import warm


def run_killed(kind: str, number: int, *words: str) -> None:
    """Run a command that dies in the given write (`tests.killed`)."""
    done: Any = subprocess.run(
        [warm.python(), "-m", "tests.killed", kind, str(number), *words],
        env=warm.ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
