"""The sizes to screen, their scores on the screening rows, and the choice of sizes to train."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom

from methods.budgets import within_parameters
from sora_cli.recipe.auto import Serve
from sora_cli.search.agreement import certifiable_share
from sora_cli.search.bca import FEWEST_DIFFERING, differing_rows, drop_on, influences
from sora_cli.search.certifiable import DIFFERING, POWER, certifiable_drop, certifiable_from
from sora_cli.search.certificate import Measured, Screened
from sora_cli.search.few import few_rows_bound
from sora_cli.search.size import Size
from sora_cli.search.sizes import SHARES
from sora_cli.search.worst import has_worst

if TYPE_CHECKING:
    from methods.budgets import Values
    from sora_cli.tasks.row_scores import RowScores

_TESTABLE = 1.5 * FEWEST_DIFFERING
"""Test rows that are expected to differ for a size to be tested with an approximate bound."""
_BEFOREHAND = 20
"""Weight of the drop that is expected before screening, in right-or-wrong rows."""
_STEP = 2  # places in the list of sizes to the next bolder one


def part_rows(rows: int, seed: int, *, screening: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Split row numbers at random into screening rows and test rows, each sorted.

    Args:
        rows: number of rows.
        screening: share of the screening rows; of two or more rows, each part gets at least one.
    """
    order = np.random.default_rng(seed).permutation(rows)
    first = min(max(round(rows * screening), 1), max(rows - 1, 1))
    return np.sort(order[:first]), np.sort(order[first:])


@dataclass(frozen=True)
class PlannedSize:
    """A size to screen, before it is scored.

    Attributes:
        share: the share of full rank's parameters that is asked for.
        max_params: the same as a number of parameters.
        ranks: rank of each layer after the cut.
    """

    share: float
    max_params: int
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class Cuts:
    """A checkpoint and its unhealed cuts, scored on the screening rows.

    Attributes:
        full, whole: size and scores of the uncut checkpoint.
        planned: the cuts, from the largest to the smallest.
        sizes, scores: size and scores of each cut.
    """

    full: Size
    whole: RowScores
    planned: list[PlannedSize]
    sizes: list[Size]
    scores: list[RowScores]


def planned_sizes(values: Values, cost: Mapping[str, int], full: int) -> list[PlannedSize]:
    """Return the sizes to screen, without empty sizes and repetitions.

    Args:
        values: singular values of each layer's update.
        cost: numbers that one component of each layer stores.
        full: parameters at full rank.
    """
    sizes: list[PlannedSize] = []
    for share in SHARES:
        budget = int(share * full)
        ranks = within_parameters(values, cost, budget)
        if any(ranks.values()) and not (sizes and sizes[-1].ranks == ranks):
            sizes.append(PlannedSize(share, budget, ranks))
    return sizes


def screen(cuts: Cuts, *, test_rows: int, confidence: float) -> list[Screened]:
    """Return the screening results of all cuts, from largest to smallest; none is named yet.

    Args:
        test_rows: number of rows that will test a size.
        confidence: confidence of that test.
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
    """Return the screening result of one cut, not named yet.

    Args:
        whole, small: scores of the uncut checkpoint and of the cut on the same rows.
        test_rows, confidence: as of `screen`.
    """
    drop = drop_on(whole, small)
    result = Screened(
        **size.model_dump(),
        share=planned.share,
        max_params=planned.max_params,
        screening=Measured(score=small.beside(whole), drop=drop),
        named=False,
    )
    seen = differing_rows(whole, small) / len(whole)
    if whole.is_agreement:
        # the drop is the differing share itself, and not half of it
        result.expected, _ = _expected(planned.share, drop, seen, len(whole), worth=2.0)
        certified = certifiable_share(test_rows, result.expected, confidence, POWER)
        result.certifiable = certified - result.expected
        return result
    if whole.is_right_or_wrong:
        result.expected, differing = _expected(planned.share, drop, seen, len(whole))
        result.certifiable = certifiable_drop(test_rows, differing=differing, confidence=confidence)
        return result
    result.certifiable = _certifiable(whole, small, test_rows, confidence)
    differing = seen
    if has_worst(whole):
        # the spread of the influences per differing row; about 1 for accuracy
        worth = float(influences(whole, small).std()) / math.sqrt(seen) if seen else 0.0
        result.expected, differing = _expected(planned.share, drop, seen, len(whole), worth)
    # too few test rows would differ for the bootstrap: take the worst-case bound that then applies
    if test_rows * differing < _TESTABLE or not seen:
        most = int(binom.ppf(POWER, test_rows, differing))
        result.certifiable = few_rows_bound(whole, most, confidence, rows=test_rows)
    elif result.certifiable is not None:
        # the spread, and with it the bound, grows with the root of the share of differing rows
        result.certifiable *= math.sqrt(differing / seen)
    result.differing = test_rows * differing
    return result


def _expected(
    share: float, drop: float, seen: float, rows: int, worth: float = 1.0
) -> tuple[float, float]:
    """Return the expected drop of a size, and the expected share of differing rows.

    Both are weighted means of the screening result and of a prior that counts as `_BEFOREHAND`
    rows: a few rows without a difference show little, many rows decide alone. By the prior, the
    largest size differs on `DIFFERING` of the rows, a smaller size on more, in inverse proportion
    to its share, and the drop is half of the differing share. The prior fits unhealed cuts of the
    quickstart (seed 0: drops of 1.25, 2.5, 3.75 and 6.25 points at 70, 30, 22 and 15 % of the
    parameters; the prior says 1.25, 2.9, 4.0 and 5.8).

    Args:
        share: share of full rank's parameters.
        drop: drop on the screening rows.
        seen: share of the screening rows that differ.
        worth: drop of the metric if all rows were lost, as a multiple of accuracy's.
    """
    differing = min(DIFFERING * SHARES[0] / share, 1.0)
    weight = _BEFOREHAND / (rows + _BEFOREHAND)
    mean = weight * differing + (1 - weight) * seen
    expected = weight * worth * differing / 2 + (1 - weight) * drop
    return expected, max(round(mean, 3), DIFFERING)


def _certifiable(whole: RowScores, small: RowScores, rows: int, confidence: float) -> float | None:
    """Return the drop that rows can be expected to certify; None: screening cannot tell."""
    drop = certifiable_from(whole, small, rows, confidence=confidence)
    return drop if math.isfinite(drop) and drop > 0 else None


def name_sizes(
    screened: Sequence[Screened],
    full: Size,
    max_drop: float,
    most: int,
    serve: Serve | None,
    *,
    tested: bool = True,
    answers: bool = False,
) -> list[int]:
    """Choose the screened sizes to train; return their indices, from the largest to the smallest.

    Sizes are tested from the largest to the smallest, and the first failure ends the testing. A
    size passes if its drop plus the uncertainty of the test is within the promise; larger sizes
    differ from full rank on fewer rows, so they pass more easily. Three kinds are chosen in turn:

    - The *safe* size is the smallest whose expected drop plus certifiable drop is within the
      promise, like those of all larger sizes; the largest size if none is.
    - The *liked* size is the smallest whose expected drop alone is within the promise.
    - *Bold* sizes follow below it, each two places further down the list of sizes. Healing wins
      back about that much: on the quickstart (seed 0, the last 10 % of the steps) 15 % of the
      components score like all of them, 8 % lose 8 points.

    If the bound is approximate, a size two places above the safe size comes first, if there is one,
    and bold sizes follow below the safe size: in short runs on STS-B (the replay of
    docs/results/auto.md) few sizes passed that were chosen by the drop alone. A size that is
    expected to differ from full rank on too few test rows would have no bound, and is not chosen.

    Answers are not won back by healing, so there are no bold sizes, and the first size is one place
    above the safe one. In the replay of docs/results/few-rows.md, with promises of 2 and 4 % on
    10,000 rows, that certified a size in 90 and 93 % of the runs in place of 82 and 82 %.

    If the adapter is to be served, sizes of equal serving cost count as one: that with the most
    parameters is trained. A size that costs as much as full rank is left out.

    Args:
        screened: from the largest to the smallest.
        full: size of full rank.
        most: largest number of sizes to train.
        serve: server of the adapter; None: parameters count.
        tested: False: no test could pass, so only the liked size is trained.
        answers: the promise is about answers.
    """
    able = _distinct(screened, full, serve)
    if tested:
        able = _testable(screened, able, max_drop)
    sizes = [screened[number] for number in able]
    liked = _last_within([expected_drop(size) for size in sizes], max_drop)
    safe = _last_within([expected_drop(size) + (size.certifiable or 0) for size in sizes], max_drop)
    if not tested:
        places = [liked]
    elif answers:
        # one size: the safe one; two: its neighbours; three: all of them
        neighbours = [max(safe - 1, 0), max(safe, liked)]
        places = [safe] if most == 1 else neighbours if most == 2 else [*neighbours, safe]
    elif any(size.expected is None or size.differing is not None for size in sizes):
        above = [max(safe - _STEP, 0)] if most > 1 else []
        places = [*above, safe, *(safe + _STEP * n for n in range(1, most))]
    else:
        places = [safe, liked, *(liked + _STEP * n for n in range(1, most))]
    within = sorted({min(place, len(able) - 1) for place in places})
    return [able[place] for place in within[:most]]


def expected_drop(size: Screened) -> float:
    """Return the drop that is expected of a size before healing."""
    return size.screening.drop if size.expected is None else size.expected


def _testable(screened: Sequence[Screened], able: list[int], max_drop: float) -> list[int]:
    """Return the sizes that can be tested: enough rows differ, or the bound is small anyway.

    If none of them has an expected drop within the promise, all sizes are returned: a size that
    hardly differs from full rank is better than a bad one, and may get a small bound after all.
    """
    testable = [n for n in able if _is_testable(screened[n], max_drop)]
    return testable if any(expected_drop(screened[n]) <= max_drop for n in testable) else able


def _is_testable(size: Screened, max_drop: float) -> bool:
    if size.differing is None or size.differing >= _TESTABLE:
        return True
    return size.certifiable is not None and size.certifiable <= max_drop


def _last_within(drops: Sequence[float], max_drop: float) -> int:
    """Return the index before the first drop above `max_drop`, and at least 0."""
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
