"""The tree of runs below a directory: runs of a sweep, path or search are its parts.

No torch here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sora_cli.adapter.places import ADAPTER, DELTA, MODEL
from sora_cli.core.atomic import is_leftover
from sora_cli.core.errors import SoraError
from sora_cli.core.lock import is_locked
from sora_cli.experiments.listing.entry import Entry, planned_entry, read_entry, read_sweep
from sora_cli.train.checkpoint.places import FOLDER

_NO_RUNS = {ADAPTER, DELTA, MODEL, FOLDER}
"""Directories inside a run that hold no other runs."""
_LOCKED_AS_ONE = ("path", "auto")
"""Kinds with one lock for the whole and none for each part."""


@dataclass
class Node:
    """An entry and its parts, in natural order of their directories."""

    entry: Entry
    parts: list[Node] = field(default_factory=list)


def find_entries(place: Path) -> list[Node]:
    """Return the runs, sweeps, paths and searches in and below a directory."""
    if not place.is_dir():
        what = f"{place} is a file" if place.exists() else f"there is no directory {place}"
        raise SoraError(what, hint="name the directory that your runs are in: sora list DIR")
    return list(_below(place, None, at_work=False))


def _below(directory: Path, parent: Entry | None, *, at_work: bool) -> Iterator[Node]:
    try:
        items = sorted(os.scandir(directory), key=lambda item: _natural(item.name))
    except OSError as error:
        raise SoraError(f"{directory} cannot be read: {error.strerror}") from error
    files = {item.name for item in items if item.is_file()}  # read once, for all kinds of records
    # a symbolic link to a parent would never end
    folders = [Path(item.path) for item in items if item.is_dir(follow_symlinks=False)]
    entry = read_entry(directory, files, at_work=at_work)
    if entry is not None:
        entry.parent = None if parent is None else parent.directory
        if parent is not None and parent.kind == "path":
            entry.seed = parent.seed  # a stage's own seed only orders its rows
        at_work = entry.kind in _LOCKED_AS_ONE and is_locked(directory)
    parts: list[Node] = []
    for folder in folders:
        if not (_is_passed_over(folder) or (entry is not None and folder.name in _NO_RUNS)):
            parts += _below(folder, parent if entry is None else entry, at_work=at_work)
    if entry is None:
        yield from parts
        return
    if entry.kind == "sweep":
        parts += _without_reports(directory, entry, parts)
    yield Node(entry, parts)


def _is_passed_over(folder: Path) -> bool:
    return folder.name.startswith(".") or is_leftover(folder)


def _without_reports(directory: Path, sweep: Entry, parts: list[Node]) -> Iterator[Node]:
    """Yield the runs of a sweep that ended before they wrote a report."""
    record = read_sweep(directory) if sweep.status != "damaged" else None
    known = {part.entry.directory for part in parts}
    for run in record.runs if record else ():
        entry = planned_entry(directory / run.name, run)
        if entry is not None and entry.directory not in known:
            entry.parent = sweep.directory
            yield Node(entry)


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a key that sorts "s10" after "s9"."""
    return [(word, int(number or -1)) for word, number in re.findall(r"(\D*)(\d*)", name)]
