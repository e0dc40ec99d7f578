"""The numbers of screening and test rows, by the cost of scoring them. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sora_cli.core.errors import SoraError
from sora_cli.recipe.auto import AutoBlock
from sora_cli.recipe.recipe import TrainingBlock
from sora_cli.search.halves import HALF_SHARES, HALVES
from sora_cli.search.sizes import SHARES

_SCREENING = 1 / 4
"""Screening rows as a share of all rows held out: they only choose sizes, test rows certify one."""
_FIFTH = 5  # at most one in five rows of the training split is taken away from training
_THIRD = 3  # at most one in three, if a fifth is fewer than `_FEWEST` rows for each part
_BACKWARD = 3  # cost of a training step in forward passes: one forward, and twice that backward
_MOST_SCREENING = 500  # of rows without labels: each is answered by eleven cuts
_FEWEST = 16  # smallest part; fewer rows show nothing

_SCREENED_OF_HALVES = 1 / 10  # of all rows; the final run alone trains on them
_MOST_OF_HALVES = 200  # screening rows of cross-fitting; each half's cuts are scored on all of them
_LEAST_HEALING = 0.07
"""Least share of a half's steps after a cut, if more than one size is trained: fewer steps cost
more points than a second size is worth (the figures at `plan._HEALING`)."""
MOST_WORK = 2.3
"""Most work of cross-fitting, in runs on all rows, where it is chosen by itself."""


def rows_for(test: int) -> tuple[int, int]:
    """Return the `auto.rows` that give this many test rows, and the training rows this takes.

    At most a fifth of the training split is held out, so the split needs five times `auto.rows`.
    """
    held = math.ceil(test / (1 - _SCREENING))
    return held, _FIFTH * held


def rows_for_halves(test: int) -> int:
    """Return the rows of the training split that give each half this many rows."""
    both = len(HALVES) * test
    screened = both * _SCREENED_OF_HALVES / (1 - _SCREENED_OF_HALVES)
    return math.ceil(both + max(min(screened, _MOST_OF_HALVES), _FEWEST)) + 1


@dataclass(frozen=True)
class RowPlan:
    """The numbers of screening, test and training rows, and the cost of scoring.

    Attributes:
        trained: rows that are left to train on.
        total: rows of the training split.
        scoring: cost of scoring all sizes, as a share of the full run's work.
        unlabelled: screening and test rows come from a file of their own.
        answers: rows of such a file that test sizes beside the labelled test rows.
        planned: test rows as planned, where some of them repeat an input and do not test; None:
            all of them do.
    """

    screening: int
    test: int
    trained: int
    total: int
    scoring: float
    unlabelled: bool = False
    answers: int = 0
    planned: int | None = None

    @property
    def held_out(self) -> int:
        """Screening and test rows that are taken out of the training split."""
        return 0 if self.unlabelled else self.screening + self.planned_test

    @property
    def planned_test(self) -> int:
        """Test rows as planned, repeated inputs included."""
        return self.test if self.planned is None else self.planned

    def counted(self, test: int, answers: int = 0) -> RowPlan:
        """Return the plan with the numbers of rows that really test; all runs stay the same."""
        return replace(self, test=test, answers=answers, planned=self.planned_test)


@dataclass(frozen=True, kw_only=True)
class HalvesPlan(RowPlan):
    """The rows and the work of cross-fitting; `test` and `trained` are rows of a half.

    Attributes:
        sizes: largest number of sizes that are trained on each half.
        heal: share of a half's steps after the cut.
        work: of all runs and scores, in runs on all rows.
    """

    sizes: int
    heal: float
    work: float


def plan_halves(
    block: AutoBlock, training: TrainingBlock, *, total: int, healing: float
) -> HalvesPlan:
    """Return the rows of cross-fitting, and sizes and healing that keep the work within bounds.

    Three runs cost about 1.9 runs on all rows: one on each half, and the final one. Testing on all
    rows comes next; screening and healing share the work that is left, and fewer sizes are tested
    rather than healed too shortly.

    Args:
        total: rows of the training split.
        healing: work of healing all sizes, as a share of the full run's, if the bounds allow it.
    """
    half = (total - _FEWEST) // 2
    if half < _FEWEST:
        raise SoraError(
            f"cross-fitting needs {3 * _FEWEST} rows, and the training split has {total}",
            hint="auto.cross_fit=false",
            key="auto.cross_fit",
        )
    # in forward passes of one row, as in `plan_rows`
    whole = _BACKWARD * training.total_steps(total) * training.batch_size
    steps = on_fewer(training, half / total).total_steps(half)
    one = _BACKWARD * steps * training.batch_size / whole
    passes = len(HALVES) * (len(HALF_SHARES) + 1) / whole  # work of screening on one row
    for sizes in range(block.sizes, 0, -1):
        tests = len(HALVES) * (sizes + 1) * half / whole
        left = MOST_WORK - 1 - len(HALVES) * one - tests
        each = len(HALVES) * sizes * one  # work of healing for all of a half's steps
        if left >= _LEAST_HEALING * each + _FEWEST * passes:
            break
    most = min(round(_SCREENED_OF_HALVES * total), _MOST_OF_HALVES)
    spent = min(left / 2, left - _LEAST_HEALING * each)  # on screening
    screening = max(min(most, int(spent / passes)), _FEWEST)
    screening += (total - screening) % 2  # halves of the same number of rows, and of steps
    scoring = tests + screening * passes
    heal = min((left + tests - scoring) / each, healing / sizes, 0.5)
    heal = max(round(heal, 4), _LEAST_HEALING)
    rows = (total - screening) // 2
    return HalvesPlan(
        screening=screening,
        test=rows,
        trained=rows,
        total=total,
        scoring=scoring,
        sizes=sizes,
        heal=heal,
        work=1 + len(HALVES) * one + heal * each + scoring,
    )


def on_fewer(training: TrainingBlock, share: float) -> TrainingBlock:
    """Return the training block for a share of the rows: as many passes over them."""
    update: dict[str, float] = {}
    if training.max_steps is not None:
        update["max_steps"] = max(round(training.max_steps * share), 1)
    if training.warmup >= 1:
        update["warmup"] = max(round(training.warmup * share), 1)
    return training.model_copy(update=update)


def plan_rows(
    block: AutoBlock,
    training: TrainingBlock,
    *,
    wanted: int,
    total: int,
    healing: float,
    unlabelled: int | None = None,
    answers: int = 0,
) -> RowPlan:
    """Return the numbers of rows to hold out of the training split.

    `auto.rows` sets them directly; of a promise about a drop, only the rows that are held out.
    Otherwise rows that training does not want, or a fifth of the split, are held out, as far as
    scoring them fits into `auto.cost`.

    Args:
        wanted: rows to train on, if this many are left.
        total: rows of the training split.
        healing: work of healing all sizes, as a share of the full run's.
        unlabelled: rows in a file of their own, which decide in place of training rows.
        answers: rows in a file of their own that test sizes beside the rows held out.
    """
    if unlabelled is not None and block.max_differ is None:
        block = block.model_copy(update={"rows": None})
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
        test = max(min(most - screening, int((budget - screening * screens) / tests)), _FEWEST)
    held = screening + test
    spent = (screening * screens + (test + answers) * tests) / work if work else 0.0
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
        needed = f", and {_THIRD * 2 * _FEWEST} are needed" if block.rows is None else ""
        raise SoraError(
            f"the training split has {total} rows{needed}: {held} held out to choose the size "
            "leave too few to train on",
            hint=f"sora train holds none out; auto.rows={max(total // _FIFTH, 4)} holds fewer out, "
            "and promises less",
            key="auto.rows",
        )
    trained = min(wanted, total - held)
    return RowPlan(screening, test, trained, total, spent, answers=answers)
