"""Markdown that renders alike on the documentation site and on a code host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NOTE = "<!-- made from the code by make reference: change the code, not this page -->"


def page(title: str, *parts: str) -> str:
    """Join a page's title and parts with blank lines."""
    return "\n\n".join([NOTE, f"# {title}", *(part for part in parts if part)]) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, or empty text if there are no rows."""
    lines = [_line([cell(text) for text in row]) for row in rows]
    if not lines:
        return ""
    return "\n".join([_line(columns), _line(["---"] * len(columns)), *lines])


def code(text: str) -> str:
    """Return text as inline code; empty text stays empty."""
    return f"`{text}`" if text else ""


def cell(text: str) -> str:
    """Escape text for a table's cell: one line, no bars, no HTML, no emphasis."""
    outside = re.split(r"(`[^`]*`)", " ".join(text.replace("|", "\\|").split()))
    return "".join(p if p.startswith("`") else _escape(p) for p in outside)


def _escape(text: str) -> str:
    return re.sub(r"([<>*\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
