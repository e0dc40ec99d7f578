"""The number of rows that choose a size, by what scoring them costs. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sora_cli.core.errors import SoraError
from sora_cli.recipe.auto import AutoBlock
from sora_cli.recipe.recipe import TrainingBlock
from sora_cli.search.sizes import SHARES

_SCREENING = 1 / 4
"""Share of the rows that screen: they only name sizes, where the others must prove one."""
_FIFTH = 5  # of the training split, at most, is taken away from the training
_THIRD = 3  # of the split, where a fifth is not enough rows for anything
_BACKWARD = 3  # forward passes that a row's step takes: one forward, and twice that backward
_FEWEST = 16  # rows of a part; with fewer nothing can be said

FACTORS = (1 / 3, 1.0, 3.0)
"""The learning rates that a probe tries, as multiples of the recipe's."""
_PROBED = 0.05  # of the full run's steps, for each rate
_FEWEST_STEPS, _MOST_STEPS = 10, 100


def probe_steps(total: int) -> int:
    """Return how many steps each learning rate is tried for.

    Args:
        total: the full run's.
    """
    return min(max(round(_PROBED * total), _FEWEST_STEPS), _MOST_STEPS, total)


def rows_for(test: int) -> tuple[int, int]:
    """Return the `auto.rows` of which so many test, and a split that has five times as many."""
    held = math.ceil(test / (1 - _SCREENING))
    return held, _FIFTH * held


@dataclass(frozen=True)
class RowPlan:
    """The numbers of rows that choose, and the cost of scoring them.

    Attributes:
        trained: rows that are left to train on.
        total: rows of the training split.
        scoring: what scoring them takes, as a share of the full run's work.
    """

    screening: int
    test: int
    trained: int
    total: int
    scoring: float

    @property
    def held_out(self) -> int:
        """Rows of both parts."""
        return self.screening + self.test


def plan_rows(
    block: AutoBlock, training: TrainingBlock, *, wanted: int, total: int, healing: float
) -> RowPlan:
    """Return how many rows of the training split are held out.

    Args:
        wanted: rows to train on, if so many are left.
        total: rows of the training split.
        healing: the work of healing all sizes, as a share of the full run's.

    Raises:
        SoraError: the split has too few rows.
    """
    work = _BACKWARD * training.total_steps(wanted) * training.batch_size  # forward passes of rows
    screens, tests = len(SHARES) + 1, block.sizes + 1  # passes over the rows of each part
    if block.rows is not None:
        screening = int(block.rows * _SCREENING)
        test = block.rows - screening
    else:
        most = max(total - wanted, total // _FIFTH)
        budget = max(block.cost - healing, 0) * work
        screening = min(int(most * _SCREENING), int(budget / 3 / screens))
        screening = max(screening, _FEWEST)
        test = max(min(most - screening, int((budget - screening * screens) / tests)), _FEWEST)
    held = screening + test
    most = total - 1 if block.rows is not None else max(total - wanted, total // _THIRD)
    if screening < 1 or held > most:
        raise SoraError(
            f"the training split has {total} rows: {held} that choose the size leave too few",
            hint=f"auto.rows={max(total // _FIFTH, 4)}",
            key="auto.rows",
        )
    spent = (screening * screens + test * tests) / work if work else 0.0
    return RowPlan(screening, test, min(wanted, total - held), total, spent)
