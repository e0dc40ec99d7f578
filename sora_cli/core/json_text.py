"""JSON texts that people read or may have written.

For readers a short object takes one line, and a long one is broken at its entries.
"""

from __future__ import annotations

import json
from typing import Any

_WIDTH = 100


def readable_json(values: dict[str, Any]) -> str:
    """Return JSON text that ends in a newline.

    The outermost object has one entry per line. A nested value that fits on a line takes one line.
    In a longer one, plain values fill the lines, and each object starts on a new line.
    """
    entries = [
        f"{_flat(key)}: {_laid_out(value, 2, len(key) + 4)}" for key, value in values.items()
    ]
    return "{\n  " + ",\n  ".join(entries) + "\n}\n"


def _laid_out(value: Any, indent: int, before: int) -> str:
    """Return the text of a value on a line that already has `indent + before` characters."""
    flat = _flat(value)
    if not isinstance(value, dict | list) or indent + before + len(flat) < _WIDTH:
        return flat
    inner = indent + 2
    if isinstance(value, dict):
        entries = [f"{_flat(k)}: {_laid_out(v, inner, len(k) + 4)}" for k, v in value.items()]
        parts = list(value.values())
    else:
        entries, parts = [_laid_out(v, inner, 0) for v in value], value
    if not any(isinstance(part, dict) and part for part in parts):
        entries = _filled(entries, _WIDTH - inner)
    start, end = "{}" if isinstance(value, dict) else "[]"
    lines = f",\n{' ' * inner}".join(entries)
    return f"{start}\n{' ' * inner}{lines}\n{' ' * indent}{end}"


def _filled(entries: list[str], width: int) -> list[str]:
    """Join neighbouring entries with commas while they fit on a line."""
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + len(entry) + 3 <= width and "\n" not in lines[-1] + entry:
            lines[-1] += f", {entry}"
        else:
            lines.append(entry)
    return lines


def _flat(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object for `object_pairs_hook`; a repeated key is a ValueError.

    Of equal keys json takes the last; another reader of the text may take the first.
    """
    data = dict(pairs)
    if len(data) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} is there twice")
    return data
