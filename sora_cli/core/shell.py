"""Names in commands that are printed for the user to type."""

from __future__ import annotations

import shlex

_STREAM = "-"


def quote(name: str) -> str:
    """Quote a path, a Hub id or another word of a command for the shell; see `as_operand`."""
    return shlex.quote(as_operand(name))


def as_operand(name: str) -> str:
    """Put './' before a name that begins with a dash, which would be an option of the command.

    Anybody may have named a directory, or the base model of an adapter, `--force`. It is a path: no
    id on the Hub begins with a dash (`core.hub.looks_local`).
    """
    return f"./{name}" if name.startswith("-") and name != _STREAM else name
