"""Open an adapter of any program: PEFT's directly, other programs' files as if they were PEFT's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sora_cli.adapter.foreign.base import BaseLayers, base_layers
from sora_cli.adapter.foreign.contents import Contents, ForeignPair, Source
from sora_cli.adapter.foreign.formats import read_contents
from sora_cli.adapter.foreign.places import foreign_file
from sora_cli.adapter.foreign.placing import (
    DIFFUSERS_PARTS,
    by_base,
    by_name,
    parts_of,
    readable_names,
)
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_json
from sora_cli.adapter.peft.config import parse_config
from sora_cli.adapter.peft.layout import pair_keys, split_keys
from sora_cli.adapter.peft.patterns import anchored
from sora_cli.adapter.places import locate_adapter
from sora_cli.adapter.reading import AdapterFile, describe, open_adapter
from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_CONFIG
from sora_cli.model.fingerprint import StoredTensor, read_metadata
from sora_cli.model.tensors import TensorFile, open_tensors


@contextmanager
def open_any(
    place: Path, *, base: str | None = None, for_show: bool = False
) -> Iterator[AdapterFile]:
    """Open an adapter directory, or another program's file or directory.

    Args:
        base: reference of the model that tells which layers another program's names mean.
        for_show: accept names that are not module paths of the base, for commands that write
            nothing.
    """
    place = locate_adapter(place)
    file = foreign_file(place)
    if file is None:
        if base is not None:
            raise SoraError(f"{place} is a PEFT adapter, which names its base model itself",
                            hint="leave out --base")  # fmt: skip
        with open_adapter(place) as adapter:
            yield adapter
        return
    with open_tensors(file) as tensors:
        source = Source(tensors, read_metadata(file), _config_beside(file))
        contents = read_contents(source)
        yield _opened(place, contents, tensors, base, for_show=for_show)


def _config_beside(file: Path) -> Mapping[str, Any]:
    place = file.parent / ADAPTER_CONFIG
    raw = read_json(place) if place.is_file() else {}
    return raw if isinstance(raw, dict) else {}


def _opened(
    place: Path, contents: Contents, tensors: TensorFile, base: str | None, *, for_show: bool
) -> AdapterFile:
    layers: BaseLayers | None = None
    left_out: Mapping[str, str] = {}
    if base is not None:
        parts = parts_of(contents)
        layers = base_layers(base, [DIFFUSERS_PARTS.get(part, part) for part in parts])
        pairs, left_out = by_base(contents, tensors, layers)
    else:
        pairs = readable_names(contents) if for_show else by_name(contents, str(tensors.file))
    entries = _as_pefts(pairs, tensors)
    transposed = [key for path, pair in pairs.items() if pair.transposed for key in pair_keys(path)]
    config = parse_config(_config(pairs, entries, contents, layers), str(tensors.file))
    reference = BaseReference(contents.base, "") if layers is None else layers.reference
    as_peft = tensors.seen_as(entries, transposed=transposed)
    keys = split_keys(as_peft.keys, config, str(as_peft.file))
    opened = describe(place, config, AdapterMeta(), reference, as_peft, keys)
    notes = _notes(contents, layers, left_out)
    return replace(opened, notes=(*opened.notes, *notes), format=contents.format)


def _as_pefts(pairs: Mapping[str, ForeignPair], tensors: TensorFile) -> dict[str, StoredTensor]:
    """Return the file's entries under PEFT's names and with PEFT's shapes."""
    entries = {}
    for path, pair in pairs.items():
        for key, name in zip((pair.a, pair.b), pair_keys(path), strict=True):
            entry = tensors.entry(key)
            shape = entry.shape[::-1] if pair.transposed else entry.shape
            entries[name] = replace(entry, name=name, shape=shape)
    return entries


def _config(
    pairs: Mapping[str, ForeignPair],
    entries: Mapping[str, StoredTensor],
    contents: Contents,
    layers: BaseLayers | None,
) -> dict[str, Any]:
    """Return the configuration that PEFT would have written."""
    ranks = {path: (entries[pair_keys(path)[0]].shape or (0,))[0] for path in pairs}
    # PEFT's scaling is alpha / r; the most common values become r and lora_alpha, others patterns
    alphas = {path: pair.scaling * ranks[path] for path, pair in pairs.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    task_type = contents.task_type if layers is None else layers.task_type
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": contents.base if layers is None else layers.reference.path,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {anchored(path): r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {anchored(path): a for path, a in alphas.items() if a != alpha},
        "target_modules": sorted(pairs),
        "fan_in_fan_out": layers is not None and layers.fan_in_fan_out,
    }


def _notes(
    contents: Contents,
    layers: BaseLayers | None,
    left_out: Mapping[str, str],
) -> Iterator[str]:
    if layers is None:
        yield f"read from {contents.format}'s file; its names were not compared with a base model"
    for part, reason in left_out.items():
        count = sum(pair.part == part for pair in contents.pairs)
        yield f"left out: the file's {count} modules of {part}: {reason}"
