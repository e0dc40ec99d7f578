"""The rows that test a promise about a drop: labelled rows, or rows without labels.

Where a row is right or wrong, a smaller adapter loses no more rows than it answers differently. So
the upper bound of the share of rows that are answered differently is an upper bound of the drop,
and needs no label. It is conservative: rows that are won, or wrong before and after, count as lost
all the same. Therefore many rows without labels certify a small drop only of a size that hardly
differs, while labelled rows, usually few, certify a drop of a size whose losses and gains balance.

The choice depends on the promise and the numbers of rows alone, and is made before any training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sora_cli.core.errors import SoraError
from sora_cli.recipe.auto import Basis
from sora_cli.search.promise import Promise, rounded_up, rows_are_right_or_wrong
from sora_cli.search.statistics import statistic_on
from sora_cli.tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_cli.recipe.recipe import Recipe

BASES: tuple[Basis, ...] = ("labels", "answers")
"""The bases that are chosen among; of equally good ones the first is chosen."""
DIFFERING_SHARES = (0.0025, 0.005, 0.01, 0.025, 0.05)
"""Shares of rows on which the sizes to be tested may differ: the chance is a mean over them."""
_DIGITS = 3  # of chances that are compared: a smaller difference is no reason
_HOW = {
    "labels": "labels test the drop, and rows without labels are not used",
    "answers": "answers to rows without labels test the drop, and labels do not",
}


def against_answers(recipe: Recipe, metric: str, basis: Basis | None) -> str | None:
    """Return the reason why answers cannot test a drop of a metric; None: they can.

    Args:
        basis: basis that the user chose, which is an error if it needs answers.
    """
    reason = None
    if not rows_are_right_or_wrong(recipe):
        reason = f"{metric} can drop by more than the share of answers that differ"
    elif not recipe.task.options.ROWS_ALONE:
        reason = f"{metric} depends on the number of rows, among which each row chooses"
    if reason is not None and basis == "answers":
        raise SoraError(
            f"auto.basis=answers cannot test this drop: {reason}",
            where=recipe.place("auto.basis"),
            hint="auto.basis=labels, or --max-differ 1%",
        )
    return reason or ("auto.basis=labels" if basis == "labels" else None)


def check_asking(recipe: Recipe, task: Task, metric: str) -> None:
    """Raise `SoraError` if a person cannot label rows for a metric with a label of a short list."""
    reason = None
    if not rows_are_right_or_wrong(recipe):
        reason = f"{metric} is no share of right rows: lost and won rows do not tell its drop"
    elif not recipe.task.options.ROWS_ALONE:
        reason = f"of {metric} each row chooses among all others"
    elif type(task).questions is Task.questions:
        reason = f"{metric} compares texts: a slip of the pen would make both models wrong"
    if reason is not None:
        raise SoraError(
            f"no labels can be asked for: {reason}",
            where="labels of a short list are needed: accuracy of classes, of choices or of pairs",
            hint="leave out --ask",
            key="auto.ask",
        )


def choose_basis(promise: Promise, rows: Mapping[Basis, int]) -> Basis:
    """Return the basis that is planned to certify most.

    Args:
        rows: the bases to choose from, each with its number of test rows.
    """
    if math.isnan(promise.max_drop):  # `smallest`
        return min(rows, key=lambda basis: rounded_up(_smallest(promise, basis, rows[basis])))
    return max(rows, key=lambda basis: round(chance(promise, basis, rows[basis]), _DIGITS))


def chance(promise: Promise, basis: Basis, rows: int) -> float:
    """Return the probability that a size passes, a mean over sizes that differ more and less.

    The true drop of each size is 0: half of the differing rows are lost, and half are won.

    Args:
        rows: number of test rows.
    """
    test, most, sure = statistic_on(basis).chance, promise.max_drop, promise.confidence
    return float(np.mean([test(most, rows, share, sure) for share in DIFFERING_SHARES]))


def _smallest(promise: Promise, basis: Basis, rows: int) -> float:
    """Return the smallest drop that test rows can be expected to certify."""
    return statistic_on(basis).smallest(rows, promise.confidence)


def basis_line(chosen: Basis, promise: Promise, rows: Mapping[Basis, int]) -> str:
    """Return a line on the chosen basis, and on the drop that each basis can certify."""
    return f"{_HOW[chosen]} (auto.basis={chosen}): {chances_line(promise, rows)}"


def chances_line(promise: Promise, rows: Mapping[Basis, int]) -> str:
    """Return a line on the bases to choose from, and on the drop that each can certify."""
    if math.isnan(promise.max_drop):
        about = "smallest drop that they can be expected to certify"
        figures = {b: f"{_smallest(promise, b, rows[b]):.4f}" for b in rows}
    else:
        first, last = DIFFERING_SHARES[0], DIFFERING_SHARES[-1]
        about = (
            f"chance to certify {promise.max_drop:g}, in the mean of sizes that differ on "
            f"{first:.2%} to {last:.0%} of the rows"
        )
        figures = {b: f"{chance(promise, b, rows[b]):.0%}" for b in rows}
    return f"{about}: {', '.join(f'{b} {figures[b]} ({n:,} rows)' for b, n in rows.items())}"
