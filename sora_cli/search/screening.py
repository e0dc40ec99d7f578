"""The sizes that are screened, and which of them are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from methods.budgets import within_parameters
from sora_cli.recipe.auto import Serve
from sora_cli.search.bca import FEWEST_DIFFERING, differing_rows, influences
from sora_cli.search.certifiable import DIFFERING, POWER, certifiable_drop, certifiable_from
from sora_cli.search.certificate import Measured, Screened
from sora_cli.search.few import few_rows_bound, has_worst
from sora_cli.search.size import Size
from sora_cli.search.sizes import SHARES

if TYPE_CHECKING:
    from methods.budgets import Values
    from sora_cli.tasks.row_scores import RowScores

_STEP = 2  # rungs of the ladder between a size and a bolder one
_TESTABLE = 1.5 * FEWEST_DIFFERING
"""Differing rows that are expected of a size that is tested, where the bound is approximate."""
_BEFOREHAND = 20
"""Rows of right or wrong that speak for what is expected of a size before any row is scored."""


def part_rows(rows: int, seed: int, *, screening: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Part row numbers by a seed into those that screen sizes and those that test them, sorted.

    Args:
        rows: how many there are.
        screening: the share of the first part; both get a row at least, if there are two.
    """
    order = np.random.default_rng(seed).permutation(rows)
    first = min(max(round(rows * screening), 1), max(rows - 1, 1))
    return np.sort(order[:first]), np.sort(order[first:])


@dataclass(frozen=True)
class PlannedSize:
    """A size before it is scored.

    Attributes:
        share: of the full rank's parameters.
        max_params: the budget that gives it.
        ranks: of each layer.
    """

    share: float
    max_params: int
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class Cuts:
    """A checkpoint and its cuts, unhealed, scored on the screening rows.

    Attributes:
        full: size of the uncut one.
        whole: its scores.
        planned: the sizes, the largest first.
        sizes, scores: of each.
    """

    full: Size
    whole: RowScores
    planned: list[PlannedSize]
    sizes: list[Size]
    scores: list[RowScores]


def planned_sizes(values: Values, cost: Mapping[str, int], full: int) -> list[PlannedSize]:
    """Return the ladder's sizes, without those that are empty or as large as the one before.

    Args:
        values: singular values of each layer's update.
        cost: numbers that a component of each layer takes.
        full: parameters at full rank.
    """
    found: list[PlannedSize] = []
    for share in SHARES:
        budget = int(share * full)
        ranks = within_parameters(values, cost, budget)
        if any(ranks.values()) and not (found and found[-1].ranks == ranks):
            found.append(PlannedSize(share, budget, ranks))
    return found


def screen(cuts: Cuts, *, test_rows: int, confidence: float) -> list[Screened]:
    """Return all sizes as screening found them, the largest first; none is named yet.

    Args:
        test_rows: how many rows will test a size.
        confidence: of that test.
    """
    return [
        measured(planned, size, cuts.whole, small, test_rows=test_rows, confidence=confidence)
        for planned, size, small in zip(cuts.planned, cuts.sizes, cuts.scores, strict=True)
    ]


def measured(
    planned: PlannedSize,
    size: Size,
    whole: RowScores,
    small: RowScores,
    *,
    test_rows: int,
    confidence: float,
) -> Screened:
    """Return a size as screening found it, not named yet.

    Args:
        whole, small: scores of the uncut checkpoint and of the cut one on the same rows.
        test_rows: how many rows will test it.
        confidence: of that test.
    """
    drop = whole.value - small.value if whole.greater_is_better else small.value - whole.value
    found = Screened(
        **size.model_dump(),
        share=planned.share,
        max_params=planned.max_params,
        screening=Measured(score=small.value, drop=drop),
        named=False,
    )
    seen = differing_rows(whole, small) / len(whole)
    if whole.is_right_or_wrong:
        found.expected, differing = _expected(planned.share, drop, seen, len(whole))
        found.certifiable = certifiable_drop(test_rows, differing=differing, confidence=confidence)
        return found
    found.certifiable = _certifiable(whole, small, test_rows, confidence)
    differing = seen
    if has_worst(whole):
        worth = float(influences(whole, small).std()) / math.sqrt(seen) if seen else 0.0
        found.expected, differing = _expected(planned.share, drop, seen, len(whole), worth)
    if test_rows * differing < _TESTABLE or not seen:
        most = int(binom.ppf(POWER, test_rows, differing))
        found.certifiable = few_rows_bound(whole, most, confidence, rows=test_rows)
    elif found.certifiable is not None:
        found.certifiable *= math.sqrt(differing / seen)
    found.differing = test_rows * differing
    return found


def _expected(
    share: float, drop: float, seen: float, rows: int, worth: float = 1.0
) -> tuple[float, float]:
    """Return the drop that is expected of a size, and the share of rows that differ.

    What screening saw is averaged with what is expected beforehand, which counts as much as
    `_BEFOREHAND` rows: few rows of which none differs show little, many show all. Beforehand the
    largest size differs on `DIFFERING` of the rows, others on more in inverse proportion to their
    size, and half of these rows are lost on balance. That is what unhealed cuts of the quickstart
    lose (seed 0: 1.25, 2.5, 3.75 and 6.25 points at 70, 30, 22 and 15 % of the parameters; by this
    rule 1.25, 2.9, 4.0 and 5.8).

    Args:
        share: of the full rank's parameters.
        drop: on the screening rows.
        seen: share of these rows that differ.
        worth: the drop of a metric if all rows were lost, as a multiple of accuracy's.
    """
    differing = min(DIFFERING * SHARES[0] / share, 1.0)
    weight = _BEFOREHAND / (rows + _BEFOREHAND)
    found = weight * differing + (1 - weight) * seen
    expected = weight * worth * differing / 2 + (1 - weight) * drop
    return expected, max(round(found, 3), DIFFERING)


def _certifiable(whole: RowScores, small: RowScores, rows: int, confidence: float) -> float | None:
    """Return the loss that rows can be expected to certify; None: screening does not say."""
    found = certifiable_from(whole, small, rows, confidence=confidence)
    return found if math.isfinite(found) and found > 0 else None


def name_sizes(
    screened: Sequence[Screened],
    full: Size,
    max_drop: float,
    most: int,
    serve: Serve | None,
    *,
    tested: bool = True,
) -> list[int]:
    """Return which of the screened sizes are to be trained, the largest first.

    Tests come largest first and the first failure ends them: each must show that its loss, with all
    its uncertainty, is below the tolerated one, and a larger adapter differs from the full rank on
    fewer rows. So the first is a *safe* one: the smallest that is, like all larger ones, within the
    tolerated loss together with what the test rows can be expected to certify of it; the largest
    where none is. Then comes the one that screening *likes*: the smallest that is within the loss
    by itself. *Bold* ones stand two rungs below each other, for the steps after the cut win back
    about that much: on the quickstart (seed 0, the last 10 % of the steps) 15 % of the components
    score as all do, 8 % lose 8 points.

    Where the bound is approximate another size two rungs above the safe one comes first, if the
    ladder has one, and bold ones stand below the safe one: in short runs on STS-B (the replay of
    docs/results/auto.md) few passed that were named by the drop alone. Sizes that too few test rows
    can be expected to tell from the full rank have no bound there, and are not named.

    Where the adapter is served, sizes that cost the same there are one size: the one with the most
    parameters is the one to train, and one that costs what the full rank does saves nothing.

    Args:
        screened: the largest first.
        full: the full rank.
        most: how many are trained.
        serve: what serves the adapter.
        tested: False: no test could pass, and the size that screening likes is trained alone.
    """
    able = _distinct(screened, full, serve)
    if tested:
        able = _testable(screened, able, max_drop)
    sizes = [screened[number] for number in able]
    likes = _last([expected_drop(size) for size in sizes], max_drop)
    safe = _last([expected_drop(size) + (size.certifiable or 0) for size in sizes], max_drop)
    if not tested:
        places = [likes]
    elif any(size.expected is None or size.differing is not None for size in sizes):
        above = [max(safe - _STEP, 0)] if most > 1 else []
        places = [*above, safe, *(safe + _STEP * step for step in range(1, most))]
    else:
        places = [safe, likes, *(likes + _STEP * step for step in range(1, most))]
    within = sorted({min(place, len(able) - 1) for place in places})
    return [able[place] for place in within[:most]]


def expected_drop(size: Screened) -> float:
    """Return the loss that is expected of a size, unhealed."""
    return size.screening.drop if size.expected is None else size.expected


def _testable(screened: Sequence[Screened], able: list[int], max_drop: float) -> list[int]:
    """Return the sizes that test rows could certify: they differ on many, or the bound is small.

    If none of them is within the tolerated loss, all are returned: a size that hardly differs is
    better than a bad one, and may differ on fewer rows than expected.
    """
    found = [n for n in able if _is_testable(screened[n], max_drop)]
    return found if any(expected_drop(screened[n]) <= max_drop for n in found) else able


def _is_testable(size: Screened, max_drop: float) -> bool:
    if size.differing is None or size.differing >= _TESTABLE:
        return True
    return size.certifiable is not None and size.certifiable <= max_drop


def _last(drops: Sequence[float], max_drop: float) -> int:
    """Return the place of the last drop that is, like all before it, within a loss; else 0."""
    bad = (place for place, drop in enumerate(drops) if not drop <= max_drop)  # NaN is not within
    return max(next(bad, len(drops)) - 1, 0)


def _distinct(screened: Sequence[Screened], full: Size, serve: Serve | None) -> list[int]:
    everything = list(range(len(screened)))
    if serve is None:
        return everything
    largest: dict[int, int] = {}
    for number in everything:
        largest.setdefault(screened[number].served, number)
    cheaper = [n for cost, n in largest.items() if cost < full.served]
    return sorted(cheaper) or everything
