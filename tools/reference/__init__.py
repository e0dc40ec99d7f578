"""The pages of docs/reference, generated from the code by `python -m tools.reference`."""

from __future__ import annotations

from collections.abc import Callable

from tools.reference import commands, exit_codes, programs, recipe, report

PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands.page,
    "recipe.md": recipe.page,
    "report.md": report.page,
    "exit-codes.md": exit_codes.page,
    "programs.md": programs.page,
}
"""Each page's name in docs/reference, and the function that returns its text."""
