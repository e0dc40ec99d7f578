"""Rows of rare classes, which stay in training when rows are held out (`data.rare_classes`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from datasets import concatenate_datasets

from sora_cli.core.words import first_few
from sora_cli.data.loading import Part
from sora_cli.recipe.recipe import DataBlock

_FEW = 8  # classes that are named


def keep_rare(data: DataBlock, held: Part, rest: Part) -> tuple[Part, Part]:
    """Move rows back to training if no other row there has their class, and note their number.

    Args:
        held: rows that were drawn out of the training split; `rest` is trained on.
    """
    column = data.label_column
    if data.rare_classes is None or column not in held.rows.column_names:
        return held, rest
    labels = np.array(_labels(held, column), dtype=object)
    lacking = set(labels) - set(_labels(rest, column)) - {None}
    if not lacking:
        return held, rest
    moved = np.isin(np.arange(len(labels)), [i for i, y in enumerate(labels) if y in lacking])
    back, stays = np.flatnonzero(moved).tolist(), np.flatnonzero(~moved).tolist()
    feature = held.rows.features[column]
    names = sorted(map(str, map(getattr(feature, "int2str", lambda name: name), lacking)))
    note = (
        f"{len(back):,} of {len(labels):,} rows drawn out of {rest.origin.split} stay in training, "
        f"as no other row has their class: {first_few(names, _FEW)}"
    )
    numbers = [*_numbers(rest), *_numbers(Part(held.rows, held.origin.of(back)))]
    origin = replace(rest.origin, numbers=numbers, notes=(*rest.origin.notes, note))
    rows = concatenate_datasets([rest.rows, held.rows.select(back)])
    return Part(held.rows.select(stays), held.origin.of(stays)), Part(rows, origin)


def _labels(part: Part, column: str) -> list[Any]:
    table = part.rows.select_columns(column).with_format("arrow")[:]
    values: list[Any] = table[column].to_pylist()
    return values


def _numbers(part: Part) -> list[int]:
    known = part.origin.numbers
    return list(range(len(part.rows)) if known is None else known)
