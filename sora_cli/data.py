"""From a recipe's data block to rows: which data set, which splits, which rows play which part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from methods.registry import did_you_mean
from sora_cli.builtin import BUILTINS
from sora_cli.data_source import Builtin, Files, Folder, Hub, find_source
from sora_cli.errors import SoraError, first_line
from sora_cli.offline import offline_error, quiet_hub
from sora_cli.recipe import DataBlock


@dataclass(frozen=True)
class Rows:
    """Rows by their part in the run.

    Attributes:
        train: rows trained on.
        select: rows whose metric chooses the checkpoint.
        report: rows whose metric is reported, by name; the first is the main one.
        rule: one sentence that says how rows were chosen, for the report.
    """

    train: Dataset
    select: Dataset
    report: dict[str, Dataset]
    rule: str


def load_rows(data: DataBlock) -> Rows:
    """Load the splits a recipe needs and give every row its part.

    Raises:
        SoraError: nothing there, an unknown split, an empty split.
    """
    datasets.disable_progress_bars()
    quiet_hub()
    splits = _load_splits(data)
    wanted = [data.train, *data.validation]
    for split in wanted:
        if split not in splits:
            raise SoraError(f"the data has no split '{split}'{did_you_mean(split, splits)}")
        if len(splits[split]) == 0:
            raise SoraError(f"split '{split}' of the data is empty")
    return _assign(data, splits)


def _assign(data: DataBlock, splits: Mapping[str, Dataset]) -> Rows:
    train = splits[data.train]
    report = {name: splits[name] for name in data.validation}
    main = data.validation[0]
    if data.selection == "validation":
        select = report[main]
        rule = f"checkpoint chosen on {main}, the split that is reported"
    elif data.selection == "half-validation":
        if len(report[main]) < 2:
            raise SoraError(f"selection: half-validation needs two rows; '{main}' has one")
        halves = _split(report[main], len(report[main]) // 2, data.selection_seed)
        select, report[main] = halves
        rule = f"checkpoint chosen on a random half of {main}, the other half reported"
    else:
        if data.selection_rows >= len(train):
            raise SoraError(
                f"data.selection_rows {data.selection_rows} leaves none of {len(train)} "
                "training rows"
            )
        select, train = _split(train, data.selection_rows, data.selection_seed)
        rule = f"checkpoint chosen on {data.selection_rows} rows held out of {data.train}"
    limit = data.max_validation_rows
    return Rows(
        train=_head(train, data.max_train_rows),
        select=_head(select, limit),
        report={name: _head(rows, limit) for name, rows in report.items()},
        rule=f"{rule} (split seed {data.selection_seed})"
        if data.selection != "validation"
        else rule,
    )


def _split(rows: Dataset, first: int, seed: int) -> tuple[Dataset, Dataset]:
    """Two random parts, the first of that many rows."""
    parts = rows.train_test_split(test_size=len(rows) - first, seed=seed)
    return parts["train"], parts["test"]


def _head(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None or limit >= len(rows) else rows.select(range(limit))


def _load_splits(data: DataBlock) -> Mapping[str, Dataset]:
    match find_source(data):
        case Files(splits):
            return {split: _load_files(split, *found) for split, found in splits.items()}
        case Folder(path):
            return _load_folder(path, data)
        case Builtin(name):
            return dict(BUILTINS[name]())
        case Hub():
            return _load_hub(data)


def _load_files(split: str, kind: str, paths: list[Path]) -> Dataset:
    return _quiet_load(kind, f"data.files.{split}", data_files=[str(path) for path in paths])


def _load_folder(folder: Path, data: DataBlock) -> Mapping[str, Dataset]:
    try:
        if (folder / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(str(folder)))
        return _quiet_load_all(str(folder), data, cache_dir=_cache_for(folder))
    except SoraError:
        raise
    except Exception as error:  # as many kinds as there are readers
        raise SoraError(
            f"data '{folder}' can not be loaded: {first_line(error.__cause__ or error)}",
            where=f"data.path={data.path} data.name={data.name}",
        ) from error


def _cache_for(folder: Path) -> str:
    """A cache of this directory's own, as its files are now.

    Where a README lists configurations, `datasets` tells local directories apart by their last
    name and that list only: it would take another directory's rows, or those before an edit.
    """
    state = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        state.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"local-{state.hexdigest()[:16]}")


def _load_hub(data: DataBlock) -> Mapping[str, Dataset]:
    try:
        return _quiet_load_all(data.path, data)
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise offline_error("data set", data.path, error) from error


def _quiet_load_all(
    path: str, data: DataBlock, *, cache_dir: str | None = None
) -> Mapping[str, Dataset]:
    try:
        loaded = datasets.load_dataset(path, data.name, revision=data.revision, cache_dir=cache_dir)
    except ValueError as error:
        raise SoraError(
            f"data '{path}' can not be loaded: {first_line(error)}",
            where=f"data.path={path} data.name={data.name}",
        ) from error
    if not isinstance(loaded, DatasetDict):
        raise SoraError(f"data '{path}' has no splits but is a {type(loaded).__name__}")
    return dict(loaded)


def _quiet_load(kind: str, where: str, **options: Any) -> Dataset:
    try:
        return datasets.load_dataset(kind, split="train", **options)
    except Exception as error:  # the readers of four formats raise many kinds
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise SoraError(f"{where} holds no rows") from error
        cause = error.__cause__ or error
        raise SoraError(f"{where} can not be read: {first_line(cause)}") from error
