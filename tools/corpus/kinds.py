"""The kinds of adapters by name, and how they are written into a folder."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

from tools.corpus import own_kinds, peft_kinds, wrong_kinds
from tools.corpus.own_kinds import Make
from tools.corpus.verbs import ADAPTER, BASE, RECIPE, ROWS, matches

KINDS: dict[str, Make] = {
    **{f"own/{name}": make for name, make in own_kinds.KINDS.items()},
    **{f"peft-{peft_kinds.VERSION}/{name}": make for name, make in peft_kinds.KINDS.items()},
    **{f"refused/{name}": make for name, make in wrong_kinds.REFUSED.items()},
    **{f"damaged/{name}": make for name, make in wrong_kinds.DAMAGED.items()},
}
"""Group and name -> what writes it. PEFT's own have the version of the installed PEFT."""


def chosen(pattern: str) -> dict[str, Make]:
    """Return the kinds whose name patterns such as "own/*,refused/*" match."""
    return {name: make for name, make in KINDS.items() if matches(name, pattern)}


def write(name: str, folder: Path) -> None:
    """Write a kind into DIR/name, in place of what is there; its seed is its name."""
    place = folder.resolve() / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    torch.manual_seed(zlib.crc32(name.encode()))
    KINDS[name](place)
    own_kinds.sort_sets(place)


def written(folder: Path, pattern: str) -> Iterator[tuple[str, dict[str, Path]]]:
    """Yield name and places of the kinds in a folder."""
    for place in sorted(folder.resolve().glob("*/*")):
        name = str(place.relative_to(folder.resolve()))
        if place.is_dir() and matches(name, pattern):
            yield name, places_in(place)


def places_in(place: Path) -> dict[str, Path]:
    """Return {word of a command line: path} for a kind's files."""
    names = {
        ADAPTER: ("adapter", "adapter.safetensors", "adapter.gguf"),
        BASE: ("base", "base.gguf"),
        RECIPE: ("recipe.yaml",),
        ROWS: ("rows.jsonl",),
    }
    found = {
        word: next((place / name for name in options if (place / name).exists()), None)
        for word, options in names.items()
    }
    return {word: path for word, path in found.items() if path is not None}
