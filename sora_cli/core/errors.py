"""`SoraError`, the ordinary error of this tool: at most three lines on stderr, exit code 2.

Almost every public function raises it for bad input, so that docstrings do not repeat it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.core.exit_codes import NO_VERDICT, USER_ERROR

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an exception's message; without a message, its class name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]


def reason(error: OSError, about: Path | None = None) -> str:
    """Return the system's reason, such as "permission denied".

    If the error names another file than `about`, the name follows.
    """
    text = (error.strerror or first_line(error)).lower()
    named = error.filename is not None and str(error.filename) != str(about)
    return f"{text}: {error.filename}" if named else text


def first_mistake(error: ValidationError) -> str:
    """Return the first mistake of a pydantic error: the key's path and the message."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {first['msg']}" if key else first["msg"]


class SoraError(Exception):
    """An error that the user can put right.

    Args:
        what: the problem, in one line.
        where: the place, such as "recipes/rte.yaml:12", or the valid alternatives.
        hint: the next command to type, or the nearest valid value.
        key: the recipe key with the problem, such as "data.path"; `Recipe.placing` adds its place.
    """

    exit_code = USER_ERROR

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        key: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        self.key = key
        super().__init__(what, where, hint)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def placed(self, place: str | None) -> None:
        """Add the file and line of the error's key; a second call does nothing."""
        if place is not None and self.key is not None:
            self.where = f"{place}; {self.where}" if self.where else place
        self.key = None

    def lines(self) -> list[str]:
        """Return one to three lines for the user.

        A quoted name with a newline in it is written on one line as $'...', which a shell reads.
        """
        lines = (self.what, self.shown_where, self.hint)
        return [_in_one_line(line) for line in lines if line]

    def renamed(self, old: str, new: str) -> None:
        """Replace a name in all lines, for example the name of a temporary file."""
        self.what = self.what.replace(old, new)
        self.where = self.where and self.where.replace(old, new)
        self.hint = self.hint and self.hint.replace(old, new)

    @property
    def shown_where(self) -> str | None:
        """The second line of the message."""
        return self.where


class DiscontinuedError(SoraError):
    """Work of an earlier version that this version can read, but not continue or test again."""

    exit_code = NO_VERDICT


class WaitingError(Exception):
    """Work that stops until a person has done their part; the same command goes on.

    Args:
        what: what is missing, in one line.
        lines: what to do, for the user.
    """

    def __init__(self, what: str, lines: Sequence[str]) -> None:
        super().__init__(what)
        self.lines = lines


def _in_one_line(text: str) -> str:
    quoted = re.sub(r"'([^']*\n[^']*)'", r"$'\1'", text)
    return quoted.replace("\n", "\\n")
