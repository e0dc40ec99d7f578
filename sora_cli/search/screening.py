"""The sizes to screen, their scores on the screening rows, and the choice of sizes to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from methods.budgets import within_parameters
from sora_cli.recipe.auto import Serve
from sora_cli.search.any_metric import TESTABLE
from sora_cli.search.evidence import Measured, Screened
from sora_cli.search.size import Size
from sora_cli.search.sizes import SHARES
from sora_cli.search.statistic import Statistic
from sora_cli.search.statistics import statistic_of

if TYPE_CHECKING:
    from methods.budgets import Values
    from sora_cli.tasks.row_scores import RowScores


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


def screen(
    cuts: Cuts, *, test_rows: int, confidence: float, statistic: Statistic | None = None
) -> list[Screened]:
    """Return the screening results of all cuts, from largest to smallest; none is named yet.

    Args:
        test_rows: number of rows that will test a size.
        confidence: confidence of that test.
        statistic: of that test; None: by the scores.
    """
    test: dict[str, Any] = {"test_rows": test_rows, "confidence": confidence}
    return [
        measured(planned, size, cuts.whole, small, **test, statistic=statistic)
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
    statistic: Statistic | None = None,
) -> Screened:
    """Return the screening result of one cut, not named yet.

    Args:
        whole, small: scores of the uncut checkpoint and of the cut on the same rows.
        test_rows, confidence, statistic: as of `screen`.
    """
    statistic = statistic or statistic_of(whole)
    score, drop = statistic.score(whole, small), statistic.drop(whole, small)
    expected = statistic.expected(planned.share, whole, small, test_rows, confidence)
    return Screened(
        **size.model_dump(),
        share=planned.share,
        max_params=planned.max_params,
        screening=Measured(score=score, drop=drop),
        named=False,
        expected=expected.drop,
        certifiable=expected.certifiable,
        differing=expected.differing,
    )


def name_sizes(
    screened: Sequence[Screened],
    full: Size,
    max_drop: float,
    most: int,
    serve: Serve | None,
    statistic: Statistic,
    *,
    tested: bool = True,
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
        statistic: of the test; it chooses the places in the list.
        tested: False: no test could pass, so only the liked size is trained.
    """
    able = _distinct(screened, full, serve)
    if tested:
        able = _testable(screened, able, max_drop)
    sizes = [screened[number] for number in able]
    liked = _last_within([expected_drop(size) for size in sizes], max_drop)
    safe = _last_within([expected_drop(size) + (size.certifiable or 0) for size in sizes], max_drop)
    places = statistic.places(safe, liked, most) if tested else [liked]
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
    if size.differing is None or size.differing >= TESTABLE:
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
