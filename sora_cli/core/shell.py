"""Words of command lines: names in those that are printed, operands of those that were typed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

VALUED = frozenset({"--code", "--preview"})
"""Options of `sora train` and `sora path` whose value is the next word."""
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


def operands(words: Sequence[str]) -> list[str]:
    """Return the recipe and the overrides among the words after `sora train` or `sora path`."""
    found: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            return [*found, *left]
        if word in VALUED:
            next(left, None)
        elif not word.startswith("-"):
            found.append(word)
    return found


def resumes(words: Sequence[str]) -> bool:
    """Tell whether a command line, without `sora`, continues its run with --resume."""
    return list(words[:1]) in (["train"], ["prune"])


def resuming(words: Sequence[str]) -> str:
    """Return the command line with these words, typed before, that resumes its run."""
    left = [word for word in words if word != "--resume"]
    left.insert(left.index("--") if "--" in left else len(left), "--resume")
    return shlex.join(left)
