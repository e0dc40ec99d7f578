"""The numbers of screening and test rows, by the cost of scoring them. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sora_cli.core.errors import SoraError
from sora_cli.recipe.auto import AutoBlock
from sora_cli.recipe.recipe import TrainingBlock
from sora_cli.search.sizes import SHARES

_SCREENING = 1 / 4
"""Screening rows as a share of all rows held out: they only choose sizes, test rows certify one."""
_FIFTH = 5  # at most one in five rows of the training split is taken away from training
_THIRD = 3  # at most one in three, if a fifth is fewer than the smallest parts
_BACKWARD = 3  # cost of a training step in forward passes: one forward, and twice that backward
_MOST_SCREENING = 500  # of rows without labels: each is answered by eleven cuts
_FEWEST = 16  # smallest part; fewer rows show nothing


def rows_for(test: int) -> tuple[int, int]:
    """Return the `auto.rows` that give this many test rows, and the training rows this takes.

    At most a fifth of the training split is held out, so the split needs five times `auto.rows`.
    """
    held = math.ceil(test / (1 - _SCREENING))
    return held, _FIFTH * held


@dataclass(frozen=True)
class RowPlan:
    """The numbers of screening, test and training rows, and the cost of scoring.

    Attributes:
        trained: rows that are left to train on.
        total: rows of the training split.
        scoring: cost of scoring all sizes, as a share of the full run's work.
        unlabelled: screening and test rows come from a file of their own.
        planned: test rows as planned, where some of them repeat an input and do not test; None:
            all of them do.
    """

    screening: int
    test: int
    trained: int
    total: int
    scoring: float
    unlabelled: bool = False
    planned: int | None = None

    @property
    def held_out(self) -> int:
        """Screening and test rows that are taken out of the training split."""
        return 0 if self.unlabelled else self.screening + self.planned_test

    @property
    def planned_test(self) -> int:
        """Test rows as planned, repeated inputs included."""
        return self.test if self.planned is None else self.planned

    def counted(self, test: int) -> RowPlan:
        """Return the plan with the number of rows that really test; all runs stay the same."""
        return replace(self, test=test, planned=self.planned_test)


def plan_rows(
    block: AutoBlock,
    training: TrainingBlock,
    *,
    wanted: int,
    total: int,
    healing: float,
    fewest: int = 1,
    unlabelled: int | None = None,
) -> RowPlan:
    """Return the numbers of rows to hold out of the training split.

    `auto.rows` sets them directly; of a promise about a drop, only the rows that are held out.
    Otherwise rows that training does not want, or a fifth of the split, are held out, as far as
    scoring them fits into `auto.cost`; never fewer than the test has a bound for.

    Args:
        wanted: rows to train on, if this many are left.
        total: rows of the training split.
        healing: work of healing all sizes, as a share of the full run's.
        fewest: test rows without which there is no bound.
        unlabelled: rows in a file of their own, which decide in place of training rows.
    """
    if unlabelled is not None and block.max_differ is None:
        block = block.model_copy(update={"rows": None})
    least = max(_FEWEST, fewest)  # test rows
    # all costs in forward passes of one row; each cut and full rank pass over the screening rows
    work = _BACKWARD * training.total_steps(wanted) * training.batch_size  # forward passes of rows
    screens, tests = len(SHARES) + 1, block.sizes + 1  # passes over the rows of each part
    held = unlabelled if block.rows is None else block.rows
    if held is not None:
        # rows without labels are cheap to come by: all of them test, whatever scoring them costs
        screening = int(held * _SCREENING)
        if block.rows is None:
            screening = min(screening, _MOST_SCREENING)
        test = held - screening
    else:
        most = max(total - wanted, total // _FIFTH)
        budget = max(block.cost - healing, 0) * work
        # screening gets at most a third of the passes; test rows get the rest, as they decide
        screening = min(int(most * _SCREENING), int(budget / 3 / screens))
        screening = max(screening, _FEWEST)
        test = max(min(most - screening, int((budget - screening * screens) / tests)), least)
    held = screening + test
    spent = (screening * screens + test * tests) / work if work else 0.0
    if unlabelled is not None:
        if held > unlabelled:
            raise SoraError(
                f"there are {unlabelled:,} rows without labels, and auto.rows asks for {held:,}",
                hint=f"auto.rows={unlabelled}",
                key="auto.rows",
            )
        if screening < 1:
            raise SoraError(
                f"{held:,} rows without labels are too few: a quarter chooses the sizes, the "
                "others test them",
                key="auto.unlabelled" if block.rows is None else "auto.rows",
            )
        return RowPlan(screening, test, wanted, total, spent, unlabelled=True)
    most = total - 1 if block.rows is not None else max(total - wanted, total // _THIRD)
    if screening < 1 or held > most:
        needed = f", and {_THIRD * (_FEWEST + least)} are needed" if block.rows is None else ""
        raise SoraError(
            f"the training split has {total} rows{needed}: {held} held out to choose the size "
            "leave too few to train on",
            hint=f"sora train holds none out; {_fewer(total, least)}",
            key="auto.rows",
        )
    trained = min(wanted, total - held)
    return RowPlan(screening, test, trained, total, spent)


def _fewer(total: int, least: int) -> str:
    """Return what is left if the parts of a split are too small."""
    held, _ = rows_for(least)
    if least == _FEWEST:
        return f"auto.rows={max(total // _FIFTH, 4)} holds fewer out, and promises less"
    if held < total:
        return f"auto.rows={held} holds that many out all the same"
    return f"a promise of this metric takes {least} test rows"
