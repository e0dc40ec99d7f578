"""The order of rows: training batches of similar length, and evaluation sorted by length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from sora_cli.tasks.encoded import Encoded

_POOL = 50  # steps sorted together: enough to group by length, few enough to stay random


class GroupedBatchSampler(Sampler[list[int]]):
    """Deals rows of similar length into micro-batches; depends only on seed, epoch and batch size.

    Every `batch_size` rows, in the order of the epoch, form one optimiser step. Its rows are dealt
    out to the processes one by one, and each process cuts its rows into micro-batches of
    `rows_per_pass`. So any number of processes takes the same steps.

    Rows are shuffled, sorted by length within pools of 50 steps and cut into steps; then the steps
    are shuffled. If the last step has fewer rows (random ones), it stays last. If it has too few
    rows for each process to form as many micro-batches as the others, one row is repeated
    (`is_filler`).

    Args:
        lengths: (rows,) tokens of each row; None: random order, not grouped by length.
        pool: number of steps whose rows are sorted together; 1: each step has random rows, and its
            micro-batches have rows of similar length.
        batch_size: rows in an optimiser step.
        rows_per_pass: rows in a micro-batch.
        seed: together with the epoch, the only source of randomness.
        process, processes: index of this process, and number of processes.
    """

    def __init__(
        self,
        rows: int,
        lengths: np.ndarray | None,
        *,
        batch_size: int,
        rows_per_pass: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        pool: int = _POOL,
    ) -> None:
        if batch_size % (rows_per_pass * processes):
            raise ValueError(
                f"{batch_size} rows do not split into micro-batches of {rows_per_pass} on "
                f"{processes} processes"
            )
        self.rows, self.lengths, self.seed, self.epoch = rows, lengths, seed, 0
        self.global_batch, self.batch_size = batch_size, rows_per_pass
        self.process, self.processes, self.pool = process, processes, pool

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch; the trainer calls this when an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.rows, self.global_batch)
        return full * self._lists(self.global_batch) + self._lists(rest)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps(self.epoch):
            mine = step[self.process :: self.processes]
            for number in range(self._lists(len(step))):
                rows = mine[number * self.batch_size :][: self.batch_size]
                yield [int(i) for i in (rows if len(rows) else step[:1])]

    def is_filler(self, step: int, number: int) -> bool:
        """Return True if a micro-batch only repeats a row to fill up its step.

        `step` counts from 0 in the epoch, `number` from 0 in the step.
        """
        rows = min(self.rows - step * self.global_batch, self.global_batch)
        mine = len(range(self.process, rows, self.processes))
        return number * self.batch_size >= mine

    def _lists(self, rows: int) -> int:
        """Return the number of micro-batches that each process forms from a step of `rows` rows."""
        return -(-rows // (self.batch_size * self.processes))

    def steps(self, epoch: int) -> list[np.ndarray]:
        """Return the rows of each optimiser step of an epoch."""
        # from seed and epoch alone: a resumed run repeats its epoch without the epochs before
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.rows)
        cut = self.rows - self.rows % self.global_batch
        full, rest = order[:cut], order[cut:]
        if self.lengths is not None:
            # sorting all rows would give every epoch the same batches; pools differ by epoch
            pool = self.pool * self.global_batch
            pools = [full[i : i + pool] for i in range(0, cut, pool)]
            by_length = [p[np.argsort(-self.lengths[p], kind="stable")] for p in pools]
            full = np.concatenate([full[:0], *by_length])
        steps = list(full.reshape(-1, self.global_batch))
        if self.lengths is not None:
            steps = [steps[i] for i in rng.permutation(len(steps))]
            rest = rest[np.argsort(-self.lengths[rest], kind="stable")]
        return [*steps, rest] if len(rest) else steps


class SortedByLength(TorchDataset[dict[str, Any]]):
    """A view of rows from longest to shortest, for evaluation with little padding.

    Args:
        first: number of rows in the view, the first ones; None: all.

    Attributes:
        order: (rows,) index into the data set for each position in the view.
    """

    def __init__(self, rows: Encoded, first: int | None = None) -> None:
        self.rows, self.dataset = rows, rows.dataset
        self.order = np.argsort(-rows.lengths[:first], kind="stable")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row: dict[str, Any] = self.dataset[int(self.order[place])]
        return row

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.dataset.__getitems__([int(self.order[p]) for p in places])
        return rows

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Reorder values from the view's order to the data set's order."""
        restored = np.empty_like(values)
        restored[self.order] = values
        return restored
