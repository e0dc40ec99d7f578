"""Loading of a recipe's splits, with the files of each split."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from datasets.packaged_modules.csv.csv import CsvConfig

from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.hub import ask_once, has_copies, offline_error
from sora_cli.core.words import first_few, listed, shown_path
from sora_cli.data.builtin import BUILTINS
from sora_cli.data.csv_form import csv_form
from sora_cli.data.faults import check_header, find_fault
from sora_cli.data.json_lines import refusing_fatal_lines
from sora_cli.data.places import Origin, holds_rows
from sora_cli.data.source import Builtin, Files, Folder, Hub, file_kind, find_source
from sora_cli.recipe.recipe import DataBlock

_CSV_OPTIONS: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
"""Only an empty cell is missing; by default pandas also drops texts such as NA, None and null."""
_CONFIGURATIONS = re.compile(r"pick one among the available configs: \[(.*?)\]")
"""Part of the error of `datasets` for a data set with several configurations and no name given."""


@dataclass(frozen=True)
class Part:
    """Rows of a split with their origin (split, files and row numbers).

    Attributes:
        groups: (rows,) the group of rows with the same input that each row belongs to; None: not
            known.
    """

    rows: Dataset
    origin: Origin
    groups: np.ndarray | None = None


def load_splits(data: DataBlock) -> Mapping[str, Part]:
    """Load every split that a recipe's data block defines."""
    match find_source(data):
        case Files(splits):
            return {split: _load_files(split, *files) for split, files in splits.items()}
        case Folder(path):
            return _load_folder(path, data)
        case Builtin(name):
            return _parts(BUILTINS[name]())
        case Hub():
            return _parts(_load_hub(data))


def _parts(splits: Mapping[Any, Dataset], folder: Path | None = None) -> Mapping[str, Part]:
    """Return splits with unknown files, or (with `folder`) each from a directory of its own."""
    places = {str(name): () if folder is None else (folder / str(name),) for name in splits}
    return {
        str(name): Part(rows, Origin(str(name), places[str(name)])) for name, rows in splits.items()
    }


def _load_files(split: str, kind: str, paths: list[Path]) -> Part:
    return _read_files(split, kind, paths, key=f"data.files.{split}")


def load_file(path: Path, cache: Path | None = None) -> Part:
    """Load a single file of rows that belongs to no recipe, with the settings of a recipe's files.

    The rows are not held in memory: `datasets` converts the file and reads the copy from the disk.

    Args:
        cache: directory of that copy; None: the cache of `datasets`.
    """
    datasets.disable_progress_bars()
    return _read_files("", file_kind(path), [path], cache=cache)


def _read_files(
    split: str, kind: str, paths: list[Path], *, key: str | None = None, cache: Path | None = None
) -> Part:
    notes = _check_headers(split, paths)
    place = {} if cache is None else {"cache_dir": str(cache)}
    # files of one form are read together: many small ones would take long by themselves
    groups = [(options, [str(path) for path in own]) for options, own in _by_form(kind, paths)]
    try:
        with _reading():
            parts = [
                datasets.load_dataset(kind, split="train", data_files=own, **place, **options)
                for options, own in groups
            ]
            rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        # pyarrow's JSON reader does not check that texts are UTF-8
        # until: datasets > 5.2
        rows.data.validate(full=True)
    except Exception as error:  # the readers of four formats raise many types
        raise _unreadable(key, paths, error) from error
    return Part(rows, Origin(split, tuple(paths), len(rows), notes=notes))


def _by_form(kind: str, paths: Sequence[Path]) -> Iterator[tuple[dict[str, Any], list[Path]]]:
    """Yield neighbouring files of one form, with the options that their reader needs."""
    if kind != "csv":
        yield {}, list(paths)
        return
    for options, own in groupby(paths, lambda path: csv_form(path).options):
        yield {**_CSV_OPTIONS, **options}, list(own)


def _separator(paths: Sequence[Path]) -> str | None:
    """Return the separator of CSV files that need no other option; None: they need more."""
    forms = [csv_form(path).options for path in paths]
    alike = all(form == {"sep": forms[0]["sep"]} for form in forms)
    return (forms[0]["sep"] if forms else ",") if alike else None


def _check_headers(split: str, paths: Iterable[Path]) -> tuple[str, ...]:
    """Return remarks on the headers of a split's CSV files."""
    files = (path for path in paths if file_kind(path) == "csv")
    return tuple(note for path in files for note in check_header(path, split))


def _unreadable(key: str | None, paths: Sequence[Path], error: Exception) -> SoraError:
    """Make the error for files that cannot be read, with the first broken line if one is found.

    Args:
        key: the recipe's key that names the files; None for a file that belongs to no recipe.
    """
    name, where = key or shown_path(paths[0]), key and first_few(paths)
    if not holds_rows(paths):
        return SoraError(f"{name} holds no rows", where=where, key=key)
    # `datasets` wraps a reader's error in its DatasetGenerationError, which names no reason
    reason = first_line(error.__cause__ or error)
    fault = find_fault(paths, reason)
    if fault is None:
        return SoraError(f"{name} cannot be read: {reason}", where=where, key=key)
    what = f"{name} cannot be read: {fault.what}"
    return SoraError(what, where=fault.place, hint=fault.hint, key=None if fault.line else key)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Silence the log of `datasets` while it reads rows: its errors are raised and reported once.

    Lines that would crash pyarrow are refused meanwhile.
    """
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with refusing_fatal_lines():
            yield
    finally:
        datasets.logging.set_verbosity(level)


def _load_folder(folder: Path, data: DataBlock) -> Mapping[str, Part]:
    try:
        if (folder / "dataset_dict.json").is_file():
            return _parts(datasets.load_from_disk(str(folder)), folder)
        builder = _builder(folder, data)
        data_files = builder.config.data_files or {}
        files = {
            str(name): tuple(Path(shown_path(Path(path))) for path in own)
            for name, own in data_files.items()
        }
        paths = [path for own in files.values() for path in own if file_kind(path) == "csv"]
        usual = _separator(paths)
        separator = getattr(builder.config, "sep", None)
        default = "\t" if paths and paths[0].suffix == ".tsv" else ","
        if paths and usual is None and separator == default:
            return {name: _read_files(name, "csv", list(own)) for name, own in files.items()}
        # a README may set another separator; the headers cannot be checked with ours then
        looked_at = separator == usual
    except SoraError:
        raise
    except Exception as error:  # each reader raises its own types
        raise _unloadable(data, error.__cause__ or error) from error
    notes = {name: _check_headers(name, own) for name, own in files.items() if looked_at}
    try:
        with _reading():
            builder.download_and_prepare()
        splits = {str(name): rows for name, rows in builder.as_dataset().items()}
        for rows in splits.values():
            rows.data.validate(full=True)
    except Exception as error:
        raise _unloadable(data, error.__cause__ or error, files) from error
    return {
        name: Part(rows, Origin(name, files.get(name, ()), len(rows), notes=notes.get(name, ())))
        for name, rows in splits.items()
    }


def _builder(folder: Path, data: DataBlock) -> Any:
    """Return the `datasets` builder of a directory's files."""
    options = {"revision": data.revision, "cache_dir": _cache_for(folder)}
    with _reading():
        builder = datasets.load_dataset_builder(str(folder), data.name, **options)
        if isinstance(builder.config, CsvConfig):
            options |= _CSV_OPTIONS
            own = (builder.config.data_files or {}).values()
            separator = _separator([Path(path) for paths in own for path in paths])
            if builder.config.sep == "," and separator is not None:
                options["sep"] = separator
            # made again with the options, because they are part of the name of its cache
            builder = datasets.load_dataset_builder(str(folder), data.name, **options)
    return builder


def _cache_for(folder: Path) -> str:
    """Return a cache directory for this folder in its present state.

    If a README lists configurations, `datasets` identifies a local directory by its last name and
    that list only. It would return another directory's rows, or the rows from before an edit.
    """
    # until: datasets > 5.2
    state = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        state.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"local-{state.hexdigest()[:16]}")


def _load_hub(data: DataBlock) -> Mapping[str, Dataset]:
    prepared = Path(datasets.config.HF_DATASETS_CACHE, data.path.replace("/", "___"))
    try:
        with _reading():
            if not (prepared.is_dir() or has_copies(data.path, kind="dataset")):
                ask_once(data.path, datasets.config.REPOCARD_FILENAME, kind="dataset")
            loaded = datasets.load_dataset(data.path, data.name, revision=data.revision)
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise offline_error("data set", data.path, error) from error
    except (RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unloadable(data, error.__cause__ or error) from error  # such as a loading script
    if not isinstance(loaded, DatasetDict):
        raise SoraError(
            f"data '{data.path}' is a {type(loaded).__name__} without splits", key="data.path"
        )
    return dict(loaded)


def _unloadable(
    data: DataBlock, error: BaseException, files: Mapping[str, Sequence[Path]] | None = None
) -> SoraError:
    """Make the error for a data set that cannot be loaded.

    Args:
        files: of each split; searched for a broken line.
    """
    reason, files = first_line(error), files or {}
    if several := _CONFIGURATIONS.search(str(error)):
        names = re.findall(r"'([^']+)'", several[1])
        return SoraError(
            f"data '{data.path}' has several configurations: {listed(names)}",
            hint=f"name one: data.name={names[0]}" if names else None,
            key="data.path",
        )
    for split, paths in files.items():
        if not holds_rows(paths):
            return SoraError(f"split '{split}' holds no rows", where=first_few(paths))
    fault = find_fault([path for paths in files.values() for path in paths], reason)
    if fault is not None:
        split = next(split for split, paths in files.items() if fault.path in paths)
        what = f"split '{split}' cannot be read: {fault.what}"
        return SoraError(what, where=fault.place, hint=fault.hint)
    return SoraError(
        f"data '{data.path}' cannot be loaded: {reason}",
        where=f"data.path={data.path} data.name={data.name}",
        key="data.path",
    )
