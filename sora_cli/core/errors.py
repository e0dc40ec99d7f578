"""The error for what a user can put right: shown in at most three lines, exit code 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an exception's message; its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]


def reason(error: OSError, about: Path | None = None) -> str:
    """Return why the system refused: "permission denied"; and of what, if that is another file."""
    text = (error.strerror or first_line(error)).lower()
    named = error.filename is not None and str(error.filename) != str(about)
    return f"{text}: {error.filename}" if named else text


def first_mistake(error: ValidationError) -> str:
    """Return the first mistake that pydantic found: the key's path, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {first['msg']}" if key else first["msg"]


class SoraError(Exception):
    """An error the user can put right.

    Args:
        what: what is wrong, one line.
        where: the place, such as "recipes/rte.yaml:12", or the valid alternatives.
        hint: the next command to type, or the nearest valid thing.
        key: the recipe's key it is about, such as "data.path"; `Placed.placing` says where that is.
    """

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
        """Add the place of the error's key in a file, once."""
        if place is not None and self.key is not None:
            self.where = f"{place}; {self.where}" if self.where else place
        self.key = None

    def lines(self) -> list[str]:
        """Return one to three lines for a person.

        A name with a newline in it stays in its line, in the quotes that a shell reads it from.
        """
        lines = (self.what, self.shown_where, self.hint)
        return [_in_one_line(line) for line in lines if line]

    def renamed(self, old: str, new: str) -> None:
        """Replace a name in all lines, such as that of a temporary file."""
        self.what = self.what.replace(old, new)
        self.where = self.where and self.where.replace(old, new)
        self.hint = self.hint and self.hint.replace(old, new)

    @property
    def shown_where(self) -> str | None:
        """The second line."""
        return self.where


def _in_one_line(text: str) -> str:
    quoted = re.sub(r"'([^']*\n[^']*)'", r"$'\1'", text)
    return quoted.replace("\n", "\\n")
