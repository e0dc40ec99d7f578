"""Find the data that the user names, the training split and the validation splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.core.hub import looks_local
from sora_cli.core.shell import quote
from sora_cli.core.words import listed, near_files
from sora_cli.data.loading import Part
from sora_cli.data.source import BUILTIN, file_kind, resaving
from sora_cli.propose.rules import Proposed
from sora_cli.recipe.library import YAML_FILES

_TRAIN = "train"
_VALIDATION = ("validation", "valid", "val", "dev", "eval")
_TEST = ("test",)
_KINDS = "csv, tsv, json, jsonl, parquet"


def place_of(source: str) -> dict[str, Proposed]:
    """Return the keys of a recipe's data block that locate the data.

    Args:
        source: a file, a directory, builtin://NAME, or a data set's Hub id. If a file's name
            contains `train`, a file of validation rows beside it is used, too.
    """
    path = Path(source).expanduser()
    if source.startswith(BUILTIN) or path.is_dir():
        return {"path": Proposed(source, "the rows")}
    if path.is_file():
        return _of_file(source, path)
    if looks_local(source) or file_kind(path):
        hint = near_files(path, wanted=lambda p: p.is_dir() or file_kind(p))
        raise SoraError(f"no file or directory '{source}'", hint=hint)
    return {"path": Proposed(source, "the rows: a data set of the Hub")}


def _of_file(source: str, path: Path) -> dict[str, Proposed]:
    if not file_kind(path):
        recipe = path.match(YAML_FILES)
        raise SoraError(
            f"'{source}' is a {'recipe' if recipe else 'file of another kind'}, not a data file",
            where=f"kinds of data files: {_KINDS}",
            hint=f"sora train {quote(source)}" if recipe else resaving(path),
        )
    beside = _validation_file(path)
    if beside is None:
        return {"files": Proposed({_TRAIN: source}, "the rows")}
    files = {_TRAIN: source, "validation": str(beside)}
    return {"files": Proposed(files, f"{beside.name} was found beside the training rows")}


def _validation_file(path: Path) -> Path | None:
    """Return a file of validation rows in the same directory, by its name; None: there is none."""
    if _TRAIN not in path.stem:
        return None
    names = (path.stem.replace(_TRAIN, other) for other in (*_VALIDATION, *_TEST))
    files = (path.with_name(f"{name}{path.suffix}") for name in names)
    return next((file for file in files if file.is_file()), None)


def train_split(splits: Mapping[str, Part], given: Mapping[str, Any]) -> str:
    """Return the name of the split to train on: the given split, `train`, or the only split."""
    named = given.get("train")
    if named is not None:
        return str(named)
    names = [name for name in splits if name.startswith(_TRAIN)] or list(splits)
    if len(names) > 1 and _TRAIN not in names:
        raise SoraError(
            f"several splits could be the training rows: {listed(splits)}",
            hint=f"data.train={names[0]}",
        )
    return _TRAIN if _TRAIN in names else names[0]


def validation_splits(splits: Mapping[str, Part], train: str, label: str | None) -> Sequence[str]:
    """Return the names of the splits to score on; empty: rows must be held out of `train`.

    Args:
        label: column of labels; a split that hides its labels is not used.
    """
    others = [name for name in splits if name != train and len(splits[name].rows)]
    for known in (_VALIDATION, _TEST):
        names = [name for name in others if name.startswith(known)]
        if names and not _hidden(splits[names[0]], label):
            return names
    return []


def _hidden(part: Part, label: str | None) -> bool:
    if label not in part.rows.column_names:
        return label is not None
    # data sets of competitions such as GLUE have -1 as the label of all test rows
    return all(value in (-1, None) for value in part.rows[label][:])
