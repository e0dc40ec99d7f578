"""Text that others wrote, made fit for a terminal, which takes orders from control characters."""

from __future__ import annotations


def printable(text: object) -> str:
    """One line of it: what can not be printed, line ends too, as an escape such as \\x1b."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")  # halves of surrogate pairs, too
