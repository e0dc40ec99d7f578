"""A plugin of pytest that writes each test's outcome, and skips what time does not allow.

A test is skipped once less time is left than the longest test took so far. Outcomes are written as
they come, so that a part that is ended has those of the tests before.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

FILE, END = "GPU_DAY_CASES", "GPU_DAY_END"
"""Variables of the environment: the file of JSON lines, and the end in seconds since 1970."""

_seconds: dict[str, float] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Skip a test for which no time is left."""
    if float(os.environ[END]) - time.time() < max(_seconds.values(), default=0.0):
        pytest.skip("no time left")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a test's outcome: of its call, or of the phase that kept it from being called."""
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.when != "call" and report.passed:
        return
    line = {
        "name": report.nodeid,
        "outcome": report.outcome,
        "seconds": round(_seconds[report.nodeid], 2),
        **dict(report.user_properties),
    }
    if not report.passed:
        line["why"] = str(report.longrepr)[-2000:]
    with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(line)}\n")
