"""The inputs that a result was trained on, as hashes that follow its copies, cuts and merges.

`trained_on.json` knows no path and no column, so that moved data and renamed columns do not hide a
row. 32 bits of each hash are kept: a row that meets one by chance is left out of a test, which
costs one row of 40,000 with 100,000 training rows, and never lets a training row test.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sora_cli.adapter.metadata import read_json, write_json
from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.errors import SoraError
from sora_cli.model.files import MERGE_RECORD, SORA_FILE, TRAINED_ON

RAW, READ, ANSWERED = "raw", "read", "answered"
"""Kinds of keys: of raw inputs, of inputs as the model reads them, and of these with answers."""
_LOW = np.uint64(0xFFFFFFFF)
_NO_HASHES = np.zeros(0, dtype=np.uint32)

if TYPE_CHECKING:
    from sora_cli.data.repeats import Keys  # reading an adapter needs no rows, and starts faster


@dataclass(frozen=True)
class TrainedOn:
    """Training inputs of a result and of all results that it began with.

    Attributes:
        families: task family -> kind -> one sorted array of 32-bit hashes per key.
        complete: False: other training may have come before, or nothing is known.
    """

    families: Mapping[str, Mapping[str, tuple[np.ndarray, ...]]] = field(default_factory=dict)
    complete: bool = True

    @classmethod
    def of(cls, task: str, kinds: Mapping[str, Keys]) -> TrainedOn:
        """Return the record of one training."""
        found = {
            kind: tuple(np.unique(_hashes(key)) for key in keys) for kind, keys in kinds.items()
        }
        return cls({task: found})

    def knows(self, task: str, kind: str, keys: Keys) -> bool:
        """Return True if all training inputs can be compared with rows of a task family.

        Args:
            keys: of the rows; a family may have other keys for other columns.
        """
        return self.complete and all(
            family == task and len(kinds.get(kind, ())) == len(keys)
            for family, kinds in self.families.items()
        )

    def repeated(self, task: str, kind: str, keys: Keys) -> np.ndarray:
        """Return a mask of the rows, (rows,), with the same input as a training row.

        Args:
            keys: of the rows, from the same functions in the same order as those of the record.
        """
        known = np.zeros(len(keys[0]), dtype=bool)
        for key, other in zip(keys, self.families.get(task, {}).get(kind, ()), strict=False):
            known |= np.isin(_hashes(key).reshape(len(key), -1), other).any(axis=1)
        return known

    def write(self, folder: Path) -> None:
        """Write the record into a directory."""
        families = {
            task: {kind: [_text(key) for key in keys] for kind, keys in kinds.items()}
            for task, kinds in self.families.items()
        }
        write_json(folder / TRAINED_ON, {"complete": self.complete, "families": families})


NOTHING = TrainedOn()
UNKNOWN = TrainedOn(complete=False)


def united(records: Iterable[TrainedOn]) -> TrainedOn:
    """Return one record of several trainings; complete if each is, and all have the same keys."""
    families: dict[str, dict[str, tuple[np.ndarray, ...]]] = {}
    complete = True
    for record in records:
        complete &= record.complete
        for task, kinds in record.families.items():
            own = families.setdefault(task, {})
            for kind, keys in kinds.items():
                before = own.get(kind, keys)
                # queries with scored documents have one key, and others two: none matches the other
                complete &= len(before) == len(keys)
                both = zip_longest(before, keys, fillvalue=_NO_HASHES)
                own[kind] = tuple(np.union1d(one, other) for one, other in both)
    return TrainedOn(families, complete)


def read_trained_on(folder: Path) -> TrainedOn | None:
    """Return the record beside a result; None: there is none. A damaged record tells nothing."""
    file = folder / TRAINED_ON
    try:
        if not file.is_file():
            return None
        content: dict[str, Any] = read_json(file)
        families = {
            str(task): {str(kind): tuple(map(_array, keys)) for kind, keys in kinds.items()}
            for task, kinds in content["families"].items()
        }
        return TrainedOn(families, content["complete"] is True)
    except (SoraError, OSError, KeyError, TypeError, AttributeError, ValueError, binascii.Error):
        return UNKNOWN


def copy_trained_on(source: Path, folder: Path) -> None:
    """Copy the record beside a result to a copy of it."""
    if (source / TRAINED_ON).is_file():
        write_bytes_atomic(folder / TRAINED_ON, (source / TRAINED_ON).read_bytes())


def write_united(folder: Path, results: Iterable[Path], base: Path | None = None) -> None:
    """Write the record of a result that was made from others, where anything is known of these.

    Args:
        base: the base model that belongs to it, too.
    """
    records = [read_trained_on(place) for place in results]
    if base is not None:
        records.append(base_trained_on(base))
    if any(record is not None and record is not NOTHING for record in records):
        united(record or UNKNOWN for record in records).write(folder)


def base_trained_on(folder: Path) -> TrainedOn:
    """Return the record of a base model; its pretraining elsewhere does not count."""
    made_here = any((folder / name).is_file() for name in (SORA_FILE, MERGE_RECORD))
    return read_trained_on(folder) or (UNKNOWN if made_here else NOTHING)


def _hashes(key: np.ndarray) -> np.ndarray:
    """Return 32 bits of 64-bit keys; the keys are mixed, so that any bits do."""
    return (key.astype(np.int64, copy=False).view(np.uint64) & _LOW).astype(np.uint32)


def _text(key: np.ndarray) -> str:
    return base64.b64encode(key.astype("<u4").tobytes()).decode("ascii")


def _array(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u4").astype(np.uint32)
