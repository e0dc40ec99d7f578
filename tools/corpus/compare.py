"""Compare the records of two runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from tools.corpus.record import Row

Record = Mapping[str, Mapping[str, Row]]
"""Kind of adapter -> name of a command -> its row."""
_WIDEST = 160


def differences(a: Record, b: Record) -> dict[str, dict[str, list[str]]]:
    """Return {name of a command: {kind: what differs}}; only for rows that do."""
    found: dict[str, dict[str, list[str]]] = {}
    for kind in sorted({*a, *b}):
        first, second = a.get(kind, {}), b.get(kind, {})
        for verb in dict.fromkeys([*first, *second]):
            told = list(_told(first.get(verb), second.get(verb)))
            if told:
                found.setdefault(verb, {})[kind] = told
    return found


def report(a: Record, b: Record) -> list[str]:
    """Return lines for a reader: by command, then by kind, then what differs."""
    lines = []
    for verb, kinds in sorted(differences(a, b).items()):
        lines.append(f"{verb}: {len(kinds)} kinds differ")
        for kind, told in kinds.items():
            lines += [f"  {kind}", *(f"    {line}" for line in told)]
    return lines


def _told(first: Row | None, second: Row | None) -> Iterator[str]:
    if first is None or second is None:
        yield "only in the first" if second is None else "only in the second"
        return
    for name in ("command", "exit", "stdout", "stderr"):
        if _meant(first.get(name)) != _meant(second.get(name)):
            yield from _lines(name, str(first.get(name)), str(second.get(name)))
    before, after = first.get("files", {}), second.get("files", {})
    for file in dict.fromkeys([*before, *after]):
        if before.get(file) != after.get(file):
            missing = "is in the first only" if file not in after else "is in the second only"
            yield f"{file} {'differs' if file in before and file in after else missing}"


def _meant(text: object) -> object:
    """Return the data of a JSON text: its keys may stand in any order. Other texts stay."""
    if not isinstance(text, str) or not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _lines(name: str, first: str, second: str) -> Iterator[str]:
    """Yield the first line that differs, of both texts."""
    before, after = first.splitlines(), second.splitlines()
    longest = max(len(before), len(after))
    pairs = zip(_filled(before, longest), _filled(after, longest), strict=True)
    old, new = next(pair for pair in pairs if pair[0] != pair[1])
    yield f"{name}: - {old[:_WIDEST]}"
    yield f"{' ' * len(name)}  + {new[:_WIDEST]}"


def _filled(lines: list[str], length: int) -> list[str]:
    return lines + ["(nothing)"] * (length - len(lines))
