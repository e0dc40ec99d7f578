"""`pytest tests/parity` ends with a table: case, steps, largest deviation of any factor."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "parity"
    ]
    if rows:
        terminalreporter.section("largest deviation from the reference")
    for case, steps, deviation in sorted(rows):
        terminalreporter.write_line(f"{case:<34} {steps:>4} steps   {deviation:.1e}")
