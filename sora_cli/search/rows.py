"""The rows that choose a size, in two parts, and the digests of all rows of such a run.

They are held out of the training split. *Screening* rows name the sizes to train; *test* rows judge
what was trained. The reported rows are the recipe's validation splits: no decision sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset

from sora_cli.data.content import data_fingerprint
from sora_cli.data.places import Origin
from sora_cli.data.rows import Rows, load_rows
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import DataBlock
from sora_cli.run.encode import encode
from sora_cli.run.prepare import check_rows
from sora_cli.search.certificate import SCREENING, TEST, TRAIN, RowSet, part_of
from sora_cli.search.sequence import part_rows
from sora_cli.tasks.base import Encoded, Task


@dataclass(frozen=True)
class Part:
    """The rows of one part, and where they come from."""

    rows: Dataset
    origin: Origin

    def encoded(self, task: Task, base: Base) -> Encoded:
        """Return them as the model takes them."""
        return encode(task, base, self.rows, self.origin)


def count_rows(data: DataBlock) -> int:
    """Return how many rows the training split has.

    Raises:
        SoraError: see `load_rows`.
    """
    update = {"selection": "validation", "max_train_rows": None}
    return len(load_rows(data.model_copy(update=update)).train)


def choosing_rows(task: Task, screening: int, seed: int) -> dict[str, Part]:
    """Return the rows that a run's data block holds out, parted at random, by part.

    Each part stays in the data set's order. The limit for validation rows is not theirs.

    Args:
        task: of the run, bound to its training rows.
        screening: rows of that part.
        seed: of the parting.

    Raises:
        SoraError: a row that does not fit.
    """
    rows = load_rows(task.data.model_copy(update={"max_validation_rows": None}))
    check_rows(task, rows, [rows.select])
    held = len(rows.select)
    first, rest = part_rows(held, seed, screening=screening / held)
    return {SCREENING: _taken(rows, first.tolist()), TEST: _taken(rows, rest.tolist())}


def _taken(rows: Rows, chosen: Sequence[int]) -> Part:
    origin = rows.origin(rows.select)
    return Part(rows.select.select(chosen), origin.of(chosen))


def row_sets(rows: Rows, held: Mapping[str, Part]) -> dict[str, RowSet]:
    """Return number and digest of the rows of every part.

    Args:
        held: the rows that choose, by part.
    """
    of_training = {TRAIN: rows.train, **{name: part.rows for name, part in held.items()}}
    split = rows.origin(rows.train).split
    found = {name: _row_set(split, part) for name, part in of_training.items()}
    return {**found, **{part_of(name): _row_set(name, part) for name, part in rows.report.items()}}


def _row_set(split: str, rows: Dataset) -> RowSet:
    return RowSet(split=split, rows=len(rows), digest=data_fingerprint(rows))
