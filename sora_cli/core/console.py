"""Output of the tool: data to stdout, messages to stderr.

Text from files or other people is made printable first, because terminals obey control characters.
Nothing slow is imported at the top.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from sora_cli.core.processes import is_main, rank
from sora_cli.core.unpacked import with_files
from sora_cli.core.verbosity import quiet, verbose


def say(message: str = "", *, always: bool = False) -> None:
    """Write a line for the user to stderr: progress, warnings, the next command.

    With `--quiet` only messages with `always` are written: wrong results, and the command that
    resumes a run. A leading newline in the message becomes an empty line; other control characters,
    for example in file names, are escaped.
    """
    if not is_main() or (quiet() and not always):
        return
    blank = "\n" if message.startswith("\n") else ""
    sys.stderr.write(f"{blank}{printable(message.removeprefix(blank))}\n")
    sys.stderr.flush()


_MOST_LINES = 10
"""Notes of one kind that are shown; --verbose shows all."""


def say_notes(notes: Iterable[str], kind: str = "note") -> None:
    """Write each note on a line of its own; of more than ten, the first ten and a count."""
    lines = [f"{kind}: {printable(note)}" for note in notes]
    shown = len(lines) if verbose() else _MOST_LINES
    for line in lines[:shown]:
        say(line)
    if len(lines) > shown:
        say(f"{kind}: {len(lines) - shown:,} more like these (all of them: --verbose)")


def complain(message: str) -> None:
    """Write an error message to stderr; with several processes, every process may do so."""
    # --quiet does not silence errors, and each process reports its own
    where = "" if is_main() else f"[process {rank()}] "
    sys.stderr.write(f"{where}{message}\n")
    sys.stderr.flush()


def emit(text: str) -> None:
    """Write data to stdout, for a pipe or a file."""
    if not is_main():
        return
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def count(n: float) -> str:
    """Format a number with thousands separators: 1234567 -> '1,234,567'."""
    return f"{n:,.0f}"


def size(n_bytes: float) -> str:
    """Format a number of bytes by powers of ten: 3200000 -> '3.2 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Format seconds as a duration: 3725 -> '1 h 02 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def printable(text: object) -> str:
    """Return text as one line, with an escape sequence for each unprintable character.

    A directory that a file was unpacked to has the file's name.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in with_files(str(text)))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")  # works for lone surrogates, too
