"""The source of a recipe's rows, checked without loading the rows.

No heavy library is imported here, so that a mistyped path is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.hub import looks_local
from sora_cli.core.shell import quote
from sora_cli.core.words import near_files
from sora_cli.data.builtin import BUILTINS
from sora_cli.recipe.recipe import DataBlock

BUILTIN = "builtin://"
_FILE_KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}


class MissingDataError(SoraError):
    """Error for a file or directory of rows that does not exist."""


@dataclass(frozen=True)
class Files:
    """Files of each split, with the reader of the split: "csv", "json" or "parquet"."""

    splits: Mapping[str, tuple[str, list[Path]]]


@dataclass(frozen=True)
class Folder:
    """A directory laid out like a data set on the Hub, or written by `save_to_disk`."""

    path: Path


@dataclass(frozen=True)
class Builtin:
    """A data set that the program generates."""

    name: str


@dataclass(frozen=True)
class Hub:
    """A data set's id on the Hub."""

    name: str


Source = Files | Folder | Builtin | Hub


def find_source(data: DataBlock) -> Source:
    """Return the source that a data block names; local paths must exist, the Hub is not asked."""
    if data.files is not None:
        if data.path:
            raise SoraError(
                "data.path and data.files exclude each other; give one of them", key="data.path"
            )
        for key, value in (("name", data.name), ("revision", data.revision)):
            if value is not None:
                raise SoraError(
                    f"data.{key} would change nothing: it is for data.path, not for data.files",
                    hint=f"data.{key}=null",
                    key=f"data.{key}",
                )
        return Files({split: _checked(split, names) for split, names in data.files.items()})
    if not data.path:
        raise SoraError("the recipe names no data: give data.path or data.files", key="data")
    if data.path.startswith(BUILTIN):
        return _builtin(data.path.removeprefix(BUILTIN))
    folder = Path(data.path).expanduser()
    if folder.is_dir():
        return Folder(folder)
    if looks_local(data.path):
        raise MissingDataError(
            f"no data directory '{data.path}'",
            hint=near_files(folder, wanted=Path.is_dir),
            key="data.path",
        )
    return Hub(data.path)


def file_kind(path: Path) -> str:
    """Return the reader for a file of rows: "csv", "json" or "parquet"; "" for other files."""
    return _FILE_KINDS.get(path.suffix.lower(), "")


def holds_rows(path: Path) -> bool:
    """Return True for a file that can hold rows only; a .json file may be a configuration, too."""
    return path.is_file() and bool(file_kind(path)) and path.suffix.lower() != ".json"


def resaving(path: Path) -> str | None:
    """Return a remedy for a table in a file of another kind, as Excel saves it."""
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        return "save it as CSV UTF-8"
    if path.suffix.lower() == ".txt":  # "Unicode text", separated by tabs
        return f"if it is a table: mv {quote(str(path))} {quote(str(path.with_suffix('.tsv')))}"
    return None


def check_file(path: Path) -> str:
    """Check a file of rows that belongs to no recipe, and return its reader."""
    if path.is_dir():
        raise SoraError(f"'{path}' is a directory, not a file of rows")
    if not path.is_file():
        raise MissingDataError(
            f"there is no file '{path}'",
            hint=near_files(path, wanted=lambda p: p.is_file() and file_kind(p)),
        )
    kind = file_kind(path)
    if not kind:
        raise SoraError(
            f"'{path}' is not a file of rows, by its ending",
            where=f"known endings: {', '.join(_FILE_KINDS)}",
            hint=resaving(path),
        )
    return kind


def _checked(split: str, names: list[str]) -> tuple[str, list[Path]]:
    """Check a split's files, and return their reader and paths."""
    key = f"data.files.{split}"
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        if path.is_dir():
            raise SoraError(
                f"'{path}' is a directory, not a data file (split {split})",
                hint=f"data.path={path} takes the whole directory",
                key=key,
            )
        if not path.is_file():
            raise MissingDataError(
                f"no data file '{path}' (split {split})",
                hint=near_files(path, wanted=lambda p: p.is_file() and file_kind(p)),
                key=key,
            )
    kinds = {file_kind(path) for path in paths}
    if len(kinds) != 1 or "" in kinds:
        raise SoraError(
            f"{key}: all files must be of the same known kind",
            where="known kinds: csv, tsv, json, jsonl, parquet",
            key=key,
        )
    return kinds.pop(), paths


def _builtin(name: str) -> Builtin:
    if name not in BUILTINS:
        raise SoraError(
            f"no built-in data '{name}'; {did_you_mean(name, BUILTINS)}", key="data.path"
        )
    return Builtin(name)
