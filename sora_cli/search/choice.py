"""The choice of a size: candidates tested in a fixed order, and what is said where none passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from sora_cli.search.bounds import Bound
from sora_cli.search.certifiable import certifiable_from
from sora_cli.search.sequence import in_fixed_order

if TYPE_CHECKING:
    from sora_cli.tasks.row_scores import RowScores

Key = TypeVar("Key")
Size = TypeVar("Size")


@dataclass(frozen=True)
class Candidate(Generic[Key]):
    """A size that was made and scored.

    Attributes:
        key: what the caller finds it by, such as its ranks or its run.
        components: kept in all layers.
        parameters: numbers in their factors.
        scores: on the rows that test.
    """

    key: Key
    components: int
    parameters: int
    scores: RowScores


@dataclass(frozen=True)
class Point:
    """A size that was scored, as it is shown and stored.

    Attributes:
        components: kept in all layers.
        parameters: numbers in their factors.
        score: the metric.
        drop: the loss against the whole, in the metric's own unit; negative: better.
        bound: its test; None: it is the whole, or was scored after the testing had ended.
        passed: whether the bound is within the promise; without a bound: whether the drop is.
        passed_over: whether so few rows differ that it could not be.
    """

    components: int
    parameters: int
    score: float
    drop: float
    bound: Bound | None
    passed: bool
    passed_over: bool


@dataclass(frozen=True)
class Search(Generic[Key]):
    """The sizes that were scored, and the one that was chosen.

    Attributes:
        metric: the name of what was scored.
        split: what the rows are called.
        rows: their number.
        promise: the largest drop allowed, in the metric's own unit.
        confidence: of each bound, and of the choice.
        points: the largest first; the first is the whole.
        chosen: the smallest that passed its test. If none did, the smallest before the first whose
            drop on these rows is above the promise: nothing shows that it keeps the promise.
        key: the chosen candidate's.
        certified: whether the chosen one is shown to keep the promise; the whole does.
        outside: the whole is another model, and no size that could be chosen.
        carried: the smallest drop that these rows can certify, four times in five, if the sizes
            differ from the whole as the first one with a bound does; None: not known.
    """

    metric: str
    split: str
    rows: int
    promise: float
    confidence: float
    points: tuple[Point, ...]
    chosen: Point
    key: Key
    certified: bool
    outside: bool
    carried: float | None


def choose(
    whole: Candidate[Key],
    sizes: Sequence[Size],
    make: Callable[[Size], Candidate[Key]],
    promise: float,
    confidence: float,
    split: str,
    *,
    further: bool = True,
    outside: bool = False,
) -> Search[Key]:
    """Choose the smallest size that is shown to keep a promise.

    Args:
        whole: what nothing is lost against.
        sizes: the largest first, fixed before a row is scored.
        make: makes and scores a size; called in order, and only as far as that is needed.
        promise: the largest drop allowed, in the metric's own unit.
        confidence: of each test, and of all of them.
        split: what the rows are called.
        further: if no size passes, score smaller ones all the same, without a test, for a size that
            only looks good.
        outside: the whole is another model, and no size that could be chosen: if nothing passes and
            nothing looks good either, the largest size is.
    """
    made = [whole]

    def score(size: Size) -> RowScores:
        made.append(make(size))
        return made[-1].scores

    outcome = in_fixed_order(whole.scores, sizes, score, promise, confidence)
    bounds: list[Bound | None] = [None, *(trial.bound for trial in outcome.tested)]
    points = [_point(whole, *pair, promise) for pair in zip(made, bounds, strict=True)]
    passes = outcome.chosen is not None
    if not passes and further and _looks_good(points, promise) == len(points) - 1:
        for size in sizes[len(outcome.tested) :]:
            score(size)
            points.append(_point(whole, made[-1], None, promise))
            if not points[-1].passed:
                break
    place = max((i for i, p in enumerate(points) if p.bound and p.passed), default=None)
    if place is None:
        place = max(_looks_good(points, promise), int(outside))
    return Search(
        metric=whole.scores.metric,
        split=split,
        rows=len(whole.scores),
        promise=promise,
        confidence=confidence,
        points=tuple(points),
        chosen=points[place],
        key=made[place].key,
        certified=passes or place == 0,
        outside=outside,
        carried=_carried(made, bounds, confidence),
    )


def _point(
    whole: Candidate[Key], one: Candidate[Key], bound: Bound | None, promise: float
) -> Point:
    value = one.scores.value
    drop = (whole.scores.value - value) * (1 if one.scores.greater_is_better else -1)
    passed = drop <= promise if bound is None else bound.keeps(promise)
    over = bound is not None and bound.passes_over(promise)
    return Point(one.components, one.parameters, value, drop, bound, passed, over)


def _looks_good(points: Sequence[Point], promise: float) -> int:
    """Return the place of the last point before the first whose own drop is above the promise."""
    bad = (i for i, point in enumerate(points) if i and not point.drop <= promise)
    return next(bad, len(points)) - 1


def _carried(
    made: Sequence[Candidate[Key]], bounds: Sequence[Bound | None], confidence: float
) -> float | None:
    for size, bound in zip(made, bounds, strict=True):
        if bound is not None and bound.is_of_many:
            full = made[0].scores
            return certifiable_from(full, size.scores, len(full), confidence=confidence)
    return None
