"""Distribution of a recipe's rows over training, checkpoint selection and reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.hub import quiet_hub
from sora_cli.data.loading import Part, load_splits
from sora_cli.data.places import Origin, locating
from sora_cli.data.rare import keep_rare
from sora_cli.data.repeats import KeysOf, groups_of, rows_in, share_of
from sora_cli.recipe.recipe import DataBlock

_COMMIT = re.compile(r"@([0-9a-f]{40})/")
"""The commit in addresses of the form hf://datasets/OWNER/NAME@COMMIT/train.parquet."""


@dataclass(frozen=True)
class Rows:
    """The rows of a run by their purpose.

    Attributes:
        train: rows to train on.
        select: rows whose metric chooses the checkpoint.
        report: rows whose metric is reported, by name; the first is the main split.
        rule: one sentence for the report that says how rows were chosen.
        revision: the rows' commit on the Hub, if `datasets` stored it; None for other sources.
        origins: the origin of each part.
        notes: remarks on the files.
        groups: (train rows,) of rows with the same input, where rows were dealt by them and no
            limit cuts the training rows; None: not known.
    """

    train: Dataset
    select: Dataset
    report: dict[str, Dataset]
    rule: str
    revision: str | None = None
    origins: tuple[tuple[Dataset, Origin], ...] = ()
    notes: tuple[str, ...] = ()
    groups: np.ndarray | None = None

    def origin(self, part: Dataset) -> Origin:
        """Return the origin of one of these parts."""
        return next(origin for rows, origin in self.origins if rows is part)


def load_rows(data: DataBlock, keys_of: KeysOf | None = None) -> Rows:
    """Load a recipe's splits and divide their rows into training, selection and report.

    Args:
        keys_of: returns the keys of raw rows (`Task.raw_keys`), by which rows with the same input
            are kept together; None: each row is dealt by itself, as `data.repeats: separate` says.
    """
    datasets.disable_progress_bars()
    quiet_hub()
    keys_of = keys_of if data.repeats == "together" else None
    splits = _with_held_out(data, load_splits(data), keys_of)
    wanted = [(data.train, "data.train"), *((name, "data.validation") for name in data.validation)]
    for split, key in wanted:
        if split not in splits:
            raise SoraError(
                f"the data has no split '{split}'; {did_you_mean(split, splits)}",
                hint=_layout_hint(data, splits) or _held_out_hint(data, split, splits),
                key=key,
            )
        if len(splits[split].rows) == 0:
            raise SoraError(
                f"split '{split}' of the data is empty", hint=f"{key}=ANOTHER_SPLIT", key=key
            )
    return _assign(data, splits, keys_of)


def _with_held_out(
    data: DataBlock, splits: Mapping[str, Part], keys_of: KeysOf | None
) -> Mapping[str, Part]:
    """Add the validation split that `data.held_out_rows` takes from the training rows."""
    rows, key = data.held_out_rows, "data.held_out_rows"
    if rows is None or data.train not in splits:
        return splits
    name, train = data.validation[0], splits[data.train]
    if name in splits:
        raise SoraError(
            f"{key} makes a split '{name}' from training rows, but the data already has one",
            hint=f"{key}=null",
            key=key,
        )
    if rows >= len(train.rows):
        raise SoraError(
            f"{key}={rows} leaves no rows to train on: there are {len(train.rows)}",
            hint=f"{key}={max(len(train.rows) // 5, 1)}",
            key=key,
        )
    held_out, rest = _hold_out(data, train, rows, data.held_out_seed, keys_of, key)
    return {**splits, data.train: rest, name: held_out}


def _held_out_hint(data: DataBlock, split: str, splits: Mapping[str, Part]) -> str | None:
    """Suggest `data.held_out_rows` for data that has training rows only."""
    if split != data.validation[0] or list(splits) != [data.train]:
        return None
    rows = max(len(splits[data.train].rows) // 5, 1)
    return f"data.held_out_rows={rows} takes them from the training rows"


def _layout_hint(data: DataBlock, splits: Mapping[str, Part]) -> str | None:
    """Suggest split directories for images that were laid out by class only, as a single split."""
    first = next(iter(splits.values()), None)
    images = first is not None and any(
        isinstance(feature, datasets.Image) for feature in first.rows.features.values()
    )
    folder = Path(data.path).expanduser() if data.path else None
    if not images or len(splits) > 1 or folder is None or not folder.is_dir():
        return None
    return f"lay images out as {data.train}/CLASS/1.png and {data.validation[0]}/CLASS/2.png"


def _assign(data: DataBlock, splits: Mapping[str, Part], keys_of: KeysOf | None) -> Rows:
    train, main = splits[data.train], data.validation[0]
    report = {name: splits[name] for name in data.validation}
    if data.selection == "validation":
        select = report[main]
        rule = f"checkpoint chosen on {main}, the split that is reported"
    elif data.selection == "half-validation":
        total = len(report[main].rows)
        if total < 2:
            raise SoraError(
                f"selection: half-validation needs two rows; '{main}' has one",
                hint="data.selection=validation",
                key="data.selection",
            )
        select, report[main] = _split(
            report[main], total // 2, data.selection_seed, keys_of, "data.selection"
        )
        rule = f"checkpoint chosen on a random half of {main}, the other half reported"
    else:
        total = len(train.rows)
        if data.selection_rows >= total:
            raise SoraError(
                f"data.selection_rows={data.selection_rows} leaves no rows to train on: there are "
                f"{total}",
                hint=f"data.selection_rows={max(total // 10, 1)}",
                key="data.selection_rows",
            )
        select, train = _hold_out(
            data, train, data.selection_rows, data.selection_seed, keys_of, "data.selection_rows"
        )
        rule = f"checkpoint chosen on {data.selection_rows} rows held out of {data.train}"
    if data.selection != "validation":
        rule = f"{rule} (split seed {data.selection_seed})"
    # after the splits above: a limit must not change which rows are held out
    train = _head(train, data.max_train_rows)
    select, *scored = (_head(p, data.max_validation_rows) for p in (select, *report.values()))
    if data.selection == "validation":
        select = scored[0]  # the same object, so that these rows are encoded and scored once
    parts = (train, select, *scored)
    return Rows(
        train=train.rows,
        select=select.rows,
        report={name: part.rows for name, part in zip(report, scored, strict=True)},
        rule=rule,
        revision=_revision(part.rows for part in splits.values()),
        origins=tuple((part.rows, part.origin) for part in parts),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.origin.notes)),
        groups=train.groups,
    )


def _revision(splits: Iterable[Dataset]) -> str | None:
    """Return the rows' commit on the Hub, from the addresses of their files or of their cache.

    This needs no network: `datasets` stores both with the rows.
    """
    for rows in splits:
        # freshly loaded rows have download_checksums; rows from the cache of `datasets` do not
        sources = list(rows.info.download_checksums or ())
        caches = [Path(file["filename"]).parent.name for file in rows.cache_files]
        for place in (*sources, *(f"@{name}/" for name in caches)):
            match = _COMMIT.search(place)
            if match:
                return match[1]
    return None


def _hold_out(
    data: DataBlock, train: Part, rows: int, seed: int, keys_of: KeysOf | None, key: str
) -> tuple[Part, Part]:
    """Split rows out of the training rows; return them, and the rows that are left."""
    held, rest = keep_rare(data, *_split(train, rows, seed, keys_of, key))
    if not len(held.rows):
        raise SoraError(
            f"no row can be held out of {data.train}: no class has rows of two different inputs",
            hint="give rows to score on: data.files.validation=FILE",
            key=key,
        )
    return held, rest


def _split(
    part: Part, first: int, seed: int, keys_of: KeysOf | None, key: str
) -> tuple[Part, Part]:
    """Split rows at random into two parts; the first has `first` rows.

    Args:
        keys_of: rows with the same input go to one part; as many groups of them are drawn as have
            `first` rows in the mean. Without repeats the same rows are drawn as without this.
        key: that asks for the split, for errors.
    """
    rows, origin, groups = part.rows, part.origin, None
    number = len(rows)
    if keys_of is not None:
        with locating(origin):  # keys are made once: to read rows that were dealt takes long
            groups = groups_of([part.groups] if part.groups is not None else keys_of(rows))
        number = int(groups.max()) + 1
        if number < 2:
            raise SoraError(
                f"all {len(rows):,} rows of {origin.split or 'a split'} have the same input, so "
                "none can be held out",
                hint="data.repeats=separate holds repeated rows out all the same",
                key=key,
            )
        first = share_of(number, first, len(rows))
    places = Dataset.from_dict({"row": range(number)}).with_format("arrow")
    halves = places.train_test_split(test_size=number - first, seed=seed)
    # arrays: `datasets` hashes the selected numbers, which takes 8 s for a list of a million
    chosen = [halves[name][:]["row"].to_numpy() for name in ("train", "test")]
    if groups is None:
        one, two = (Part(rows.select(own), origin.of(own)) for own in chosen)
        return one, two
    if number < len(rows):  # else each row is a group of its own
        chosen = [rows_in(groups, own) for own in chosen]
    one, two = (Part(rows.select(own), origin.of(own), groups[own]) for own in chosen)
    return one, two


def _head(part: Part, limit: int | None) -> Part:
    if limit is None or limit >= len(part.rows):
        return part
    return replace(part, rows=part.rows.select(range(limit)), groups=None)
