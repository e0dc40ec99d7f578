"""Standard streams whose writes never raise.

Text that cannot be written is dropped: the reader of a pipe may have ended (`| head -1`), a stream
may be closed (`>&-`), a disk may be full. A line that cannot be shown must not end a run of hours;
this holds for bars and warnings of other libraries, too. Data lost on stdout are reported at the
end of the command.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any, TextIO

from sora_cli.core.progress import Lines, on_terminal, plain_bars

_PLAIN = {"\N{PLUS-MINUS SIGN}": "+-", "\N{SUPERSCRIPT TWO}": "^2", "\N{EN DASH}": "-"}
_UNPRINTED = "sora_cli.unprinted"


class _Lenient(io.FileIO):
    """A raw file that drops bytes after its first write error.

    Attributes:
        lost: the first error; None: none so far.
    """

    lost: OSError | None = None

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        """Write bytes, or drop them after an error; return their number."""
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


def open_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr`; closed descriptors are opened on the null device.

    Otherwise the next file to be opened would get the closed descriptor's number, and with it the
    output of C code. If stderr is not a terminal, bars become lines (`core.progress`).
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # open() takes the lowest free number, which is the closed one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    codecs.register_error(_UNPRINTED, _replaced)
    watched = sys.stderr is not None and on_terminal(sys.stderr)
    sys.stdout = _opened(1, sys.stdout, io.TextIOWrapper)
    sys.stderr = _opened(2, sys.stderr, io.TextIOWrapper if watched else Lines)
    if not watched:
        plain_bars()


def lost_output() -> str | None:
    """Return the error that lost data for stdout; None: no loss, or the pipe's reader had ended."""
    sys.stdout.flush()
    raw = getattr(sys.stdout.buffer, "raw", None)
    lost = raw.lost if isinstance(raw, _Lenient) else None
    return None if lost is None or lost.errno == errno.EPIPE else lost.strerror


def _opened(number: int, before: TextIO | None, kind: type[io.TextIOWrapper]) -> TextIO:
    raw = _Lenient(number, "w", closefd=False)
    return kind(
        io.BufferedWriter(raw),
        encoding="utf-8" if before is None else before.encoding,
        errors=_UNPRINTED,
        line_buffering=True,
    )


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: table signs by ASCII, others by JSON escapes."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or _escaped(c) for c in text), error.end


def _escaped(character: str) -> str:
    pairs = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{pairs[i : i + 4]}" for i in range(0, len(pairs), 4))
