"""Loads a recipe's data: its splits, and the part that each row plays in a run."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.hub import offline_error, quiet_hub
from sora_cli.core.words import first_few
from sora_cli.data.builtin import BUILTINS
from sora_cli.data.faults import find_fault
from sora_cli.data.source import Builtin, Files, Folder, Hub, find_source
from sora_cli.recipe.recipe import DataBlock

_COMMIT = re.compile(r"@([0-9a-f]{40})/")
"""The commit in addresses such as hf://datasets/OWNER/NAME@COMMIT/train.parquet."""


@dataclass(frozen=True)
class Rows:
    """Rows by their part in the run.

    Attributes:
        train: rows trained on.
        select: rows whose metric chooses the checkpoint.
        report: rows whose metric is reported, by name; the first is the main one.
        rule: one sentence that says how rows were chosen, for the report.
        revision: commit on the Hub the rows came from, as far as `datasets` keeps it; None for
            rows that came from elsewhere.
    """

    train: Dataset
    select: Dataset
    report: dict[str, Dataset]
    rule: str
    revision: str | None = None


def load_rows(data: DataBlock) -> Rows:
    """Load the splits a recipe needs and give every row its part.

    Raises:
        SoraError: nothing there, an unknown split, an empty split.
    """
    datasets.disable_progress_bars()
    quiet_hub()
    splits = _load_splits(data)
    wanted = [(data.train, "data.train"), *((name, "data.validation") for name in data.validation)]
    for split, key in wanted:
        if split not in splits:
            raise SoraError(
                f"the data has no split '{split}'; {did_you_mean(split, splits)}",
                hint=_layout_hint(data, splits),
                key=key,
            )
        if len(splits[split]) == 0:
            raise SoraError(
                f"split '{split}' of the data is empty", hint=f"{key}=ANOTHER_SPLIT", key=key
            )
    return _assign(data, splits, _revision(splits.values()))


def _layout_hint(data: DataBlock, splits: Mapping[str, Dataset]) -> str | None:
    """Return a hint for directories of images by class alone, which are taken for one split."""
    rows = next(iter(splits.values()), None)
    images = rows is not None and any(
        isinstance(feature, datasets.Image) for feature in rows.features.values()
    )
    folder = Path(data.path).expanduser() if data.path else None
    if not images or len(splits) > 1 or folder is None or not folder.is_dir():
        return None
    return f"lay images out as {data.train}/CLASS/1.png and {data.validation[0]}/CLASS/2.png"


def _assign(data: DataBlock, splits: Mapping[str, Dataset], revision: str | None) -> Rows:
    train = splits[data.train]
    report = {name: splits[name] for name in data.validation}
    main = data.validation[0]
    if data.selection == "validation":
        select = report[main]
        rule = f"checkpoint chosen on {main}, the split that is reported"
    elif data.selection == "half-validation":
        if len(report[main]) < 2:
            raise SoraError(
                f"selection: half-validation needs two rows; '{main}' has one",
                hint="data.selection=validation",
                key="data.selection",
            )
        halves = _split(report[main], len(report[main]) // 2, data.selection_seed)
        select, report[main] = halves
        rule = f"checkpoint chosen on a random half of {main}, the other half reported"
    else:
        if data.selection_rows >= len(train):
            raise SoraError(
                f"data.selection_rows {data.selection_rows} leaves none of {len(train)} "
                "training rows",
                hint=f"data.selection_rows={max(len(train) // 10, 1)}",
                key="data.selection_rows",
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
        revision=revision,
    )


def _revision(splits: Iterable[Dataset]) -> str | None:
    """Return the Hub's commit that rows come from, by the addresses of their files or cache.

    Known without the network: `datasets` keeps both beside the rows.
    """
    for rows in splits:
        # rows loaded anew have the first, rows taken from the cache of `datasets` the second
        sources = list(rows.info.download_checksums or ())
        caches = [Path(file["filename"]).parent.name for file in rows.cache_files]
        for place in (*sources, *(f"@{name}/" for name in caches)):
            found = _COMMIT.search(place)
            if found:
                return found[1]
    return None


def _split(rows: Dataset, first: int, seed: int) -> tuple[Dataset, Dataset]:
    """Split rows at random into two parts, the first of that many."""
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
    key = f"data.files.{split}"
    try:
        with _quiet():
            rows = datasets.load_dataset(
                kind, split="train", data_files=[str(path) for path in paths]
            )
        rows.data.validate(full=True)  # the reader of JSON takes any bytes for text
        return rows
    except Exception as error:  # the readers of four formats raise many kinds
        fault = find_fault(kind, paths)
        if fault is None and (
            isinstance(error, StopIteration) or "corresponds to no data" in str(error)
        ):
            raise SoraError(f"{key} holds no rows", hint=first_few(paths), key=key) from error
        place, reason = fault or (first_few(paths), first_line(error.__cause__ or error))
        inside = fault is not None and not Path(place).exists()  # a line of a file
        raise SoraError(
            f"{key} cannot be read: {reason}", where=place, key=None if inside else key
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of `datasets`: what failed is raised, too, and said once."""
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)


def _load_folder(folder: Path, data: DataBlock) -> Mapping[str, Dataset]:
    try:
        if (folder / "dataset_dict.json").is_file():
            return dict(datasets.load_from_disk(str(folder)))
        splits = _load_all(str(folder), data, cache_dir=_cache_for(folder))
        for rows in splits.values():
            rows.data.validate(full=True)
        return splits
    except SoraError:
        raise
    except Exception as error:  # as many kinds as there are readers
        raise _unloadable(data, error.__cause__ or error) from error


def _cache_for(folder: Path) -> str:
    """Return a cache of this directory's own, as its files are now.

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
        return _load_all(data.path, data)
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise offline_error("data set", data.path, error) from error
    except (RuntimeError, datasets.exceptions.DatasetsError) as error:  # such as a loading script
        raise _unloadable(data, error.__cause__ or error) from error


def _unloadable(data: DataBlock, error: BaseException) -> SoraError:
    return SoraError(
        f"data '{data.path}' cannot be loaded: {first_line(error)}",
        where=f"data.path={data.path} data.name={data.name}",
        key="data.path",
    )


def _load_all(path: str, data: DataBlock, *, cache_dir: str | None = None) -> Mapping[str, Dataset]:
    try:
        with _quiet():
            loaded = datasets.load_dataset(
                path, data.name, revision=data.revision, cache_dir=cache_dir
            )
    except ValueError as error:
        raise _unloadable(data, error) from error
    if not isinstance(loaded, DatasetDict):
        raise SoraError(
            f"data '{path}' has no splits but is a {type(loaded).__name__}", key="data.path"
        )
    return dict(loaded)
