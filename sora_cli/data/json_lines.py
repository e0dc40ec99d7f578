"""A guard for pyarrow's JSON reader: it refuses the lines that would crash the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate, pairwise
from re import compile as pattern
from typing import Any

DEEPEST = 63
"""Most levels of lists and mappings in a row (the row is one level) that pyarrow can return: its
bridge between C and Python allows 64, including the table. About 10,000 levels overflow the stack,
because array builders are finished by recursion (arrow/json/parser.cc, `RawBuilderSet::Finish`)."""
NO_ROW = 'not a row; a row looks like {"text": "...", "label": 0}'
TOO_DEEP = f"nested more than {DEEPEST} levels deep"

_BLANK = b"\xef\xbb\xbf \t"  # white space, and the byte order mark of some UTF-8 files
_TEXTS = pattern(rb'"(?:[^"\\]+|\\.)*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def nesting(line: bytes) -> int:
    """Return the nesting depth of a line of JSON; 0 if it has too few brackets to be too deep."""
    if line.count(b"[") + line.count(b"{") <= DEEPEST:
        return 0  # too few brackets; no need to count exactly
    brackets = _TEXTS.sub(b"", line).translate(None, _NO_BRACKETS)
    return max(accumulate(1 if mark in b"[{" else -1 for mark in brackets), default=0)


@contextmanager
def refusing_fatal_lines() -> Iterator[None]:
    """Within this context, refuse JSON lines that would crash pyarrow's reader.

    Two kinds of lines are refused. Rows that are nested too deep overflow the stack. Rows that are
    null make the reader take the last builder of an empty stack (arrow/json/parser.cc,
    `HandlerBase::Null`): a segmentation fault if the row is the first of a block, and an empty row
    elsewhere.
    """
    import pyarrow.json as reader  # type: ignore[import-untyped]

    # until: datasets > 5.2 (apache/arrow#47409)
    # `datasets` looks the function up in this module at each call, and has no hook of its own
    own = reader.read_json

    def read_json(lines: BytesIO, *, read_options: Any) -> Any:
        _check(lines.getvalue(), read_options.block_size)
        return own(lines, read_options=read_options)

    reader.read_json = read_json
    try:
        yield
    finally:
        reader.read_json = own


def _check(lines: bytes, block: int) -> None:
    """Raise an error for lines that would crash the process.

    Args:
        block: number of bytes that pyarrow parses as one block.
    """
    from pyarrow import ArrowInvalid

    for before, line in pairwise([b"", *lines.splitlines()]):
        if line.lstrip(_BLANK).startswith(b"null"):
            if not before.rstrip().endswith((b",", b":", b"[")):
                raise ValueError(NO_ROW)
            # one document over many lines: at this error `datasets` tries again with larger blocks
            if block < len(lines):
                raise ArrowInvalid("straddling: a block may begin within a list")
        if len(line) > 2 * DEEPEST and nesting(line) > DEEPEST:  # each level has two brackets
            raise ValueError(f"a row is {TOO_DEEP}")
