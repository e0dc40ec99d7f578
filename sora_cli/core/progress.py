"""Progress in logs and pipes: a plain line every few seconds instead of a redrawn bar.

Every library draws its bars in the same way: a carriage return, then the line again. Bars are
therefore recognised in the text written to stderr, independent of the library.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

INTERVAL = 5.0
"""Seconds between two lines of a bar."""

_FORMAT = "{l_bar} {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # ECMA-48: a control sequence
_PIECE = re.compile(r"[\r\n]|[^\r\n]+")


def on_terminal(stream: TextIO | None = None) -> bool:
    """Return whether a stream (default: stderr) is a terminal that can redraw a line."""
    stream = sys.stderr if stream is None else stream
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def plain_bars() -> None:
    """Make tqdm print counts and remaining time instead of a drawn bar."""
    # tqdm reads both variables when it is imported
    os.environ.setdefault("TQDM_BAR_FORMAT", _FORMAT)
    os.environ.setdefault("TQDM_POSITION", "0")  # else an inner bar moves the cursor


class Lines(io.TextIOWrapper):
    """A text stream that drops carriage returns and escape codes.

    A line that is redrawn is written at most once in `INTERVAL` seconds, and once more in its final
    state if it ends with a newline. All other text passes unchanged.
    """

    def __init__(
        self, buffer: Any, *, clock: Callable[[], float] = time.monotonic, **options: Any
    ) -> None:
        super().__init__(buffer, **options)
        self._clock = clock
        self._drawing = False  # True after a carriage return, until the line ends
        self._drawn = self._shown = ""  # the current text of the line, and its text last written
        self._shown_at = -INTERVAL
        self._inside = False  # True: the line written last has not ended yet

    def write(self, text: str, /) -> int:
        """Write text; return its length."""
        out = [self._piece(piece) for piece in _PIECE.findall(_ESCAPE.sub("", text))]
        super().write("".join(out))
        return len(text)

    def _piece(self, piece: str) -> str:
        if piece == "\r":
            return self._begin_drawing()
        if piece == "\n":
            return self._end_line()
        if self._drawing and not self._drawn:
            self._drawn = piece.rstrip()
            return self._take(late=self._clock() - self._shown_at >= INTERVAL)
        self._drawing, self._inside = False, True
        return piece

    def _begin_drawing(self) -> str:
        ended = "\n" if self._inside else ""
        self._drawing, self._drawn, self._inside = True, "", False
        return ended

    def _end_line(self) -> str:
        if not self._drawing:
            self._inside = False
            return "\n"
        left = self._take(late=True)
        self._drawing, self._drawn, self._shown = False, "", ""
        return left

    def _take(self, *, late: bool) -> str:
        """Return the current line if it is due and was not shown yet, else an empty text."""
        if not late or self._drawn in ("", self._shown):
            return ""
        self._shown, self._shown_at = self._drawn, self._clock()
        return f"{self._drawn}\n"
