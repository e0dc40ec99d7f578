"""The rows that test a promise about a drop: labelled rows, rows without labels, or both.

Where a row is right or wrong, a smaller adapter loses no more rows than it answers differently. So
the upper bound of the share of rows that are answered differently is an upper bound of the drop,
and needs no label. It is conservative: rows that are won, or wrong before and after, count as lost
all the same. Therefore many rows without labels certify a small drop only of a size that hardly
differs, while labelled rows, usually few, certify a drop of a size whose losses and gains balance.
With both, a size passes if either bound is within the promise, each at half the error
(`Promise.parts`).

The choice depends on the promise and the numbers of rows alone, and is made before any training.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, get_args

import numpy as np

from sora_cli.core.errors import SoraError
from sora_cli.recipe.auto import Basis
from sora_cli.search.agreement import certifiable_share, chance_by_answers
from sora_cli.search.certifiable import (
    DIFFERING,
    POWER,
    Certifiable,
    certifiable_drop,
    chance_by_labels,
)
from sora_cli.search.promise import Promise, rounded_up, rows_are_right_or_wrong
from sora_cli.tasks.row_scores import answer_scores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sora_cli.recipe.recipe import Recipe
    from sora_cli.tasks.row_scores import RowScores

BASES: tuple[Basis, ...] = get_args(Basis)
"""All bases; of equally good ones the first is chosen."""
DIFFERING_SHARES = (0.0025, 0.005, 0.01, 0.025, 0.05)
"""Shares of rows on which the sizes to be tested may differ: the chance is a mean over them."""
_ACCURACY = 1e-4  # of the smallest drop that both can be expected to certify
_DIGITS = 3  # of chances that are compared: a smaller difference is no reason
_HOW = {
    "labels": "labels test the drop, and rows without labels are not used",
    "answers": "answers to rows without labels test the drop, and labels do not",
    "both": "labels and answers to rows without labels test the drop, each at half the error",
}

TestRows = tuple[int, ...]
"""Numbers of test rows for each of `Promise.parts`."""


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
    if reason is not None and basis in {"answers", "both"}:
        raise SoraError(
            f"auto.basis={basis} cannot test this drop: {reason}",
            where=recipe.place("auto.basis"),
            hint="auto.basis=labels, or --max-differ 1%",
        )
    return reason or ("auto.basis=labels" if basis == "labels" else None)


def choose_basis(promise: Promise, rows: Mapping[Basis, TestRows]) -> Basis:
    """Return the basis that is planned to certify most.

    Args:
        rows: the bases to choose from, each with its numbers of test rows.
    """
    if math.isnan(promise.max_drop):  # `smallest`
        return min(rows, key=lambda basis: rounded_up(_smallest(_on(promise, basis), rows[basis])))
    return max(rows, key=lambda basis: round(chance(_on(promise, basis), rows[basis]), _DIGITS))


def chance(promise: Promise, rows: TestRows) -> float:
    """Return the probability that a size passes, a mean over sizes that differ more and less.

    The true drop of each size is 0: half of the differing rows are lost, and half are won.

    Args:
        rows: numbers of test rows, for each part of the promise.
    """
    return float(np.mean([_chance(promise, rows, share) for share in DIFFERING_SHARES]))


def _chance(promise: Promise, rows: TestRows, differing: float) -> float:
    fails = 1.0
    for part, number in zip(promise.parts(), rows, strict=True):
        test = chance_by_answers if part.by_answers else chance_by_labels
        fails *= 1 - test(promise.max_drop, number, differing, part.confidence)
    return 1 - fails


def _smallest(promise: Promise, rows: TestRows) -> float:
    """Return the smallest drop that test rows can be expected to certify."""
    drops = [
        _smallest_share(number, part.confidence)
        if part.by_answers
        else certifiable_drop(number, confidence=part.confidence)
        for part, number in zip(promise.parts(), rows, strict=True)
    ]
    return drops[0] if len(drops) == 1 else _smallest_of_both(*rows, promise.parts()[0].confidence)


def _smallest_share(rows: int, confidence: float) -> float:
    return certifiable_share(rows, DIFFERING, confidence, POWER)


@lru_cache(maxsize=2**8)
def _smallest_of_both(labelled: int, answered: int, each: float) -> float:
    """Return the smallest drop that either of two tests certifies with the usual power.

    Args:
        each: confidence of each test.
    """
    # either test reaches the power alone at its own smallest drop, so both do at the lesser
    high = min(certifiable_drop(labelled, confidence=each), _smallest_share(answered, each))
    low = 0.0
    while high - low > _ACCURACY:
        middle = (low + high) / 2
        fails = 1 - chance_by_labels(middle, labelled, DIFFERING, each)
        fails *= 1 - chance_by_answers(middle, answered, DIFFERING, each)
        low, high = (low, middle) if 1 - fails >= POWER else (middle, high)
    return high


def certifiable_on(promise: Promise, rows: TestRows, scores: RowScores) -> Certifiable:
    """Return the smallest drop that test rows can certify, before any training.

    Args:
        rows: numbers of test rows, for each part of the promise.
        scores: scores or answers of some rows: only their metric is used.
    """
    if promise.basis != "both":
        return Certifiable.on(rows[0], promise.confidence, scores)
    each = zip(rows, promise.parts(), (scores, answer_scores([])), strict=True)
    labels, answers = (Certifiable.on(n, part.confidence, known) for n, part, known in each)
    return labels.or_else(answers, _smallest(promise, rows))


def _on(promise: Promise, basis: Basis) -> Promise:
    return promise.model_copy(update={"basis": basis})


def basis_line(chosen: Basis, promise: Promise, rows: Mapping[Basis, TestRows]) -> str:
    """Return a line on the chosen basis, and on the drop that each basis can certify."""
    return f"{_HOW[chosen]} (auto.basis={chosen}): {chances_line(promise, rows)}"


def chances_line(promise: Promise, rows: Mapping[Basis, TestRows]) -> str:
    """Return a line on the bases to choose from, and on the drop that each can certify."""
    if math.isnan(promise.max_drop):
        about = "smallest drop that they can be expected to certify"
        figures = {b: f"{_smallest(_on(promise, b), rows[b]):.4f}" for b in rows}
    else:
        first, last = DIFFERING_SHARES[0], DIFFERING_SHARES[-1]
        about = (
            f"chance to certify {promise.max_drop:g}, in the mean of sizes that differ on "
            f"{first:.2%} to {last:.0%} of the rows"
        )
        figures = {b: f"{chance(_on(promise, b), rows[b]):.0%}" for b in rows}
    named = {b: " and ".join(f"{n:,}" for n in numbers) + " rows" for b, numbers in rows.items()}
    return f"{about}: {', '.join(f'{b} {figures[b]} ({named[b]})' for b in rows)}"
