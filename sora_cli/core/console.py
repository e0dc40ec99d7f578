"""Output of the tool: data to stdout, messages to stderr.

Text that others wrote is made printable first, since terminals obey control characters. Nothing
heavy is imported at the top.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from sora_cli.core.processes import is_main, rank
from sora_cli.core.verbosity import quiet, verbose


def say(message: str = "", *, always: bool = False) -> None:
    """Write a line for the person to stderr: progress, warnings, what to type next.

    With `--quiet` only what is said `always`: a result that is wrong, how to resume. A message that
    starts with a newline comes after an empty line; other control characters, as names of files may
    have them, are escaped.
    """
    if not is_main() or (quiet() and not always):
        return
    blank = "\n" if message.startswith("\n") else ""
    sys.stderr.write(f"{blank}{printable(message.removeprefix(blank))}\n")
    sys.stderr.flush()


_MOST_LINES = 10
"""Lines of one kind that are said; all of them with --verbose."""


def say_notes(notes: Iterable[str], kind: str = "note") -> None:
    """Say notes, a line each; of very many the first ten and their number."""
    lines = [f"{kind}: {printable(note)}" for note in notes]
    shown = len(lines) if verbose() else _MOST_LINES
    for line in lines[:shown]:
        say(line)
    if len(lines) > shown:
        say(f"{kind}: {len(lines) - shown:,} more like these (all of them: --verbose)")


def complain(message: str) -> None:
    """Write what went wrong to stderr, whichever of several processes this is."""
    where = "" if is_main() else f"[process {rank()}] "
    sys.stderr.write(f"{where}{message}\n")
    sys.stderr.flush()


def emit(text: str) -> None:
    """Write data to stdout: what a pipe or a file should get."""
    if not is_main():
        return
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def count(n: float) -> str:
    """Format a number with separators: 1234567 -> '1,234,567'."""
    return f"{n:,.0f}"


def size(n_bytes: float) -> str:
    """Format bytes, by powers of ten: '3.2 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Return 3725 as '1 h 02 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def printable(text: object) -> str:
    """Return text as one line, with an escape for whatever cannot be printed."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")  # halves of surrogate pairs, too
