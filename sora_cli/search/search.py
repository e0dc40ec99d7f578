"""Choose the smallest size that a test certifies: make, test and record sizes, the largest first.

The order is fixed before a test row is scored, and the first failure ends it. A size that breaks
the promise can be certified only if every larger one was, and the first in the order that breaks
it had to pass its own test, which happens with at most 1 - confidence: no correction for the number
of sizes is needed. Source: Maurer, Hothorn and Lehmacher 1995; Wiens 2003, Pharmaceutical
Statistics 2, 211-215. A size that differs from the whole on few rows is passed over where no such
size could pass. Which sizes these are follows from how many rows differ, and not from what they
lose: the first size that breaks the promise and is not passed over must still pass its own test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

from sora_cli.core.processes import world_size
from sora_cli.search.bca import drop_on
from sora_cli.search.bounds import Bound, drop_bound
from sora_cli.search.certifiable import certifiable_from
from sora_cli.search.promise import Promise
from sora_cli.search.sizes import last_passed
from sora_cli.tasks.row_scores import RowScores

Key = TypeVar("Key")
Size = TypeVar("Size")
Made = TypeVar("Made")


def in_fixed_order(
    sizes: Iterable[Size],
    make: Callable[[Size], Made],
    test: Callable[[Made], Bound | None],
    max_drop: float,
) -> Iterator[tuple[Made, Bound | None]]:
    """Make and test sizes, the largest first, until one fails; yield each, to be recorded.

    Of several processes that train together the first one's values are yielded on all.

    Args:
        sizes: the largest first; which they are must not depend on the rows that test.
        make: called for no size after the first that fails.
        test: the drop against the whole on the rows that test; None: nothing can be tested.
        max_drop: the tolerated loss, in the metric's own unit.
    """
    for size in sizes:
        made = from_first_process(make(size))
        bound = from_first_process(test(made))
        yield made, bound
        if bound is not None and bound.fails(max_drop):
            return


def from_first_process(value: Made) -> Made:
    """Return the first process's value on every process: one decides, the others are told."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values: list[Made] = [value]
    broadcast_object_list(values)
    return values[0]


@dataclass(frozen=True)
class Candidate(Generic[Key]):
    """A size that was made and scored, and its test.

    Attributes:
        key: what its maker finds it by, such as its ranks or its run.
        components: kept in all layers.
        parameters: numbers in their factors.
        scores: on the rows that test.
        drop: the loss against the whole, in the metric's own unit; negative: better.
        bound: of that drop; None: it is the whole, or was scored after the testing had ended.
        passed: whether the bound is within the promise; without a bound: whether the drop is.
        passed_over: whether so few rows differ that it could not be.
    """

    key: Key
    components: int
    parameters: int
    scores: RowScores
    drop: float = 0.0
    bound: Bound | None = None
    passed: bool = False
    passed_over: bool = False

    @property
    def score(self) -> float:
        """The metric."""
        return self.scores.value

    def against(self, whole: RowScores, bound: Bound | None, max_drop: float) -> Candidate[Key]:
        """Return it with its test, or with its drop alone."""
        drop = drop_on(whole, self.scores)
        passed = drop <= max_drop if bound is None else bound.keeps(max_drop)
        over = bound is not None and bound.passes_over(max_drop)
        return replace(self, drop=drop, bound=bound, passed=passed, passed_over=over)

    def facts(self) -> dict[str, Any]:
        """Return what is stored of it."""
        return {
            "components": self.components,
            "parameters": self.parameters,
            "score": self.score,
            "drop": self.drop,
            "bound": None if self.bound is None else asdict(self.bound),
            "passed": self.passed,
            "passed_over": self.passed_over,
        }


@dataclass(frozen=True)
class Search(Generic[Key]):
    """The sizes that were scored, and the one that was chosen.

    Attributes:
        promise: the loss that is tolerated.
        split: what the rows that test are called.
        candidates: the largest first; the first is the whole.
        chosen: the smallest that passed its test. If none did, the smallest before the first whose
            drop on these rows is above the promise: nothing shows that it keeps the promise.
        outside: the whole is another model, and no size that could be chosen.
    """

    promise: Promise
    split: str
    candidates: tuple[Candidate[Key], ...]
    chosen: Candidate[Key]
    outside: bool

    @property
    def metric(self) -> str:
        """The name of what was scored."""
        return self.candidates[0].scores.metric

    @property
    def certified(self) -> bool:
        """True if the chosen size is shown to keep the promise; the whole does."""
        chosen = self.chosen
        return chosen is self.candidates[0] or (chosen.bound is not None and chosen.passed)

    @property
    def first_tested(self) -> Candidate[Key] | None:
        """The first size that differs on many rows; else the first that was tested."""
        tested = [one for one in self.candidates if one.bound is not None]
        many = (one for one in tested if one.bound is not None and one.bound.is_of_many)
        return next(many, next(iter(tested), None))

    @property
    def certifiable(self) -> float | None:
        """The smallest drop that these rows can certify, four times in five; None: not known.

        That is if the sizes differ from the whole as `first_tested` does.
        """
        whole, size = self.candidates[0].scores, self.first_tested
        if size is None or size.bound is None or not size.bound.is_of_many:
            return None
        confidence = self.promise.confidence
        return certifiable_from(whole, size.scores, len(whole), confidence=confidence)

    def facts(self) -> dict[str, Any]:
        """Return what an adapter's lineage says of how its size was chosen."""
        bound = self.chosen.bound
        return {
            "metric": self.metric,
            "split": self.split,
            "certified": self.certified,
            "confidence": self.promise.confidence,
            "drop": self.chosen.drop,
            "bound": None if bound is None else bound.upper,
            "bound_kind": None if bound is None else bound.kind,
            "rows": len(self.candidates[0].scores),
        }


def choose_smallest(
    whole: Candidate[Key],
    sizes: Sequence[Size],
    make: Callable[[Size], Candidate[Key]],
    promise: Promise,
    split: str,
    *,
    further: bool = True,
    outside: bool = False,
) -> Search[Key]:
    """Choose the smallest size that is shown to keep a promise, on the rows that it is scored on.

    Args:
        whole: what nothing is lost against.
        sizes: the largest first, fixed before a row is scored.
        make: makes and scores a size.
        split: what the rows are called.
        further: if no size passes, score smaller ones all the same, without a test, for a size that
            only looks good.
        outside: the whole is another model, and no size that could be chosen: if nothing passes and
            nothing looks good either, the largest size is.
    """
    full, max_drop = whole.scores, promise.max_drop

    def test(made: Candidate[Key]) -> Bound:
        return drop_bound(full, made.scores, promise.confidence)

    found = [whole.against(full, None, max_drop)]
    for made, bound in in_fixed_order(sizes, make, test, max_drop):
        found.append(made.against(full, bound, max_drop))
    place = last_passed(one.bound is not None and one.passed for one in found)
    if place is None and further and _looks_good(found, max_drop) == len(found) - 1:
        for size in sizes[len(found) - 1 :]:
            found.append(make(size).against(full, None, max_drop))
            if not found[-1].passed:
                break
    if place is None:
        place = max(_looks_good(found, max_drop), int(outside))
    return Search(promise, split, tuple(found), found[place], outside)


def _looks_good(found: Sequence[Candidate[Key]], max_drop: float) -> int:
    """Return the place of the last size before the first whose own drop is above the promise."""
    bad = (i for i, one in enumerate(found) if i and not one.drop <= max_drop)
    return next(bad, len(found)) - 1
