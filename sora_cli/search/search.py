"""Fixed-sequence testing of sizes: make and test them from largest to smallest, until one fails.

The order is fixed before a test row is scored, and the first failure ends the testing. So a wrong
certificate needs the first size in the order that breaks the promise to pass its own test, with a
probability of at most 1 - confidence. The family-wise error equals that of a single test; no
correction for the number of sizes is needed. Source: Maurer, Hothorn and Lehmacher 1995; Wiens
2003, Pharmaceutical Statistics 2, 211-215.

A size that differs from the reference on too few rows to pass is passed over. This depends on the
number of differing rows, not on their losses, so the argument still holds for the first size that
breaks the promise and is not passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from sora_cli.core.processes import from_first_process
from sora_cli.recipe.tolerance import AGREEMENT
from sora_cli.search.bca import drop_on
from sora_cli.search.bounds import Bound, drop_bound
from sora_cli.search.certifiable import certifiable_from
from sora_cli.search.promise import Promise
from sora_cli.search.sizes import last_passed
from sora_cli.tasks.row_scores import RowScores

Key = TypeVar("Key")
Size = TypeVar("Size")
Made = TypeVar("Made")


class Test(Protocol):
    """The result of a size's test."""

    def fails(self, max_drop: float, /) -> bool:
        """Return True if this test ends the testing."""


Tested = TypeVar("Tested", bound=Test)


def in_fixed_order(
    sizes: Iterable[Size],
    make: Callable[[Size], Made],
    test: Callable[[Made], Tested | None],
    max_drop: float,
) -> Iterator[tuple[Made, Tested | None]]:
    """Make and test sizes from largest to smallest until one fails; yield each with its test.

    All processes that train together get the first process's values.

    Args:
        sizes: from largest to smallest; their choice must not depend on the test rows.
        make: makes a size; not called after the first failure.
        test: tests a size's drop on the test rows; None: no test is possible.
        max_drop: the promise, in the metric's unit.
    """
    for size in sizes:
        # a yield comes before the check for failure, so that the failed size is recorded, too
        made = from_first_process(make(size))
        result = from_first_process(test(made))
        yield made, result
        if result is not None and result.fails(max_drop):
            return


@dataclass(frozen=True)
class Candidate(Generic[Key]):
    """A size that was made and scored, with its test.

    Attributes:
        key: identifies the size for its maker, such as its ranks or its run.
        components: number of components in all layers.
        parameters: numbers in the factors.
        scores: scores on the test rows.
        drop: drop against the reference, in the metric's unit; negative: better.
        bound: bound of the drop; None: the reference itself, or scored after the testing had ended.
        passed: True if the bound (without a bound: the drop) is within the promise.
        passed_over: True if too few rows differ for any such size to pass.
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
        """The metric on the test rows, or the agreement with full rank there."""
        return 1 - self.drop if self.scores.is_agreement else self.scores.value

    def against(self, whole: RowScores, bound: Bound | None, max_drop: float) -> Candidate[Key]:
        """Return a copy with the result of its test, or without a bound with its drop alone."""
        drop = drop_on(whole, self.scores)
        passed = drop <= max_drop if bound is None else bound.keeps(max_drop)
        over = bound is not None and bound.passes_over(max_drop)
        return replace(self, drop=drop, bound=bound, passed=passed, passed_over=over)

    def facts(self) -> dict[str, Any]:
        """Return the facts that are stored about this size."""
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
    """The result of a search: all sizes that were scored, and the chosen size.

    Attributes:
        split: name of the test rows.
        candidates: from largest to smallest; the first is the reference.
        chosen: the smallest size that passed its test. If none passed: the last size before the
            first whose drop on these rows is above the promise; it is not certified.
        outside: name of a reference that cannot be chosen, such as another model; None: it can.
    """

    promise: Promise
    split: str
    candidates: tuple[Candidate[Key], ...]
    chosen: Candidate[Key]
    outside: str | None

    @property
    def metric(self) -> str:
        """The name of the promised metric; of a promise about answers, agreement."""
        return AGREEMENT if self.promise.kind == "differ" else self.promise.metric

    @property
    def rows(self) -> int:
        """Number of test rows."""
        return len(self.candidates[0].scores)

    @property
    def certified(self) -> bool:
        """True if the chosen size is certified to keep the promise; the reference always is."""
        chosen = self.chosen
        return chosen is self.candidates[0] or (chosen.bound is not None and chosen.passed)

    @property
    def first_tested(self) -> Candidate[Key] | None:
        """The first tested size that differs on many rows; if there is none, the first tested."""
        tested = [one for one in self.candidates if one.bound is not None]
        many = (one for one in tested if one.bound is not None and one.bound.is_of_many)
        return next(many, next(iter(tested), None))

    def rule(self) -> dict[str, float]:
        """Return the option that gave the promise, with its number."""
        return {f"max_{self.promise.kind}": self.promise.max_drop}

    @property
    def certifiable(self) -> float | None:
        """The smallest drop that these rows certify with a probability of 80 %; None: not known.

        It assumes that a size differs from the reference as `first_tested` does.
        """
        size = self.first_tested
        if size is None or size.bound is None or not size.bound.is_of_many:
            return None
        return certifiable_from(
            self.candidates[0].scores, size.scores, self.rows, confidence=self.promise.confidence
        )

    def _repeats(self) -> dict[str, Any]:
        """Return the number of all rows, and the drop on them, if some repeat an input."""
        every, bound = self.chosen.scores.every, self.chosen.bound
        if every is None:
            return {}
        return {"all_rows": len(every), "drop_on_all_rows": None if bound is None else bound.every}

    def facts(self) -> dict[str, Any]:
        """Return the facts about the choice of the size that an adapter's lineage records."""
        bound = self.chosen.bound
        return {
            "given": self.promise.given,
            "metric": self.metric,
            "basis": self.promise.basis,
            "split": self.split,
            "certified": self.certified,
            "confidence": self.promise.confidence,
            "drop": self.chosen.drop,
            "bound": None if bound is None else bound.upper,
            "bound_kind": None if bound is None else bound.kind,
            "rows": self.rows,
            **self._repeats(),
            **({"next_tokens": True} if self.promise.next_tokens else {}),
            **({"tolerance": self.promise.tolerance} if self.promise.tolerance is not None else {}),
        }


def choose_smallest(
    whole: Candidate[Key],
    sizes: Sequence[Size],
    make: Callable[[Size], Candidate[Key]],
    promise: Promise,
    split: str,
    *,
    further: bool = True,
    outside: str | None = None,
) -> Search[Key]:
    """Choose the smallest size that is certified to keep a promise.

    If no size passes its test, the choice is by the measured drop alone, and not certified.

    Args:
        whole: the reference that drops are measured against.
        sizes: from largest to smallest, fixed before a row is scored.
        make: makes and scores a size.
        split: name of the test rows.
        further: if no size passes, score smaller sizes without a test, as long as their drops are
            within the promise.
        outside: name of a reference that cannot be chosen, such as another model: the largest size
            is chosen if no size is within the promise. None: it can.
    """
    full, max_drop = whole.scores, promise.max_drop

    def test(made: Candidate[Key]) -> Bound:
        return drop_bound(full, made.scores, promise.confidence)

    scored = [whole.against(full, None, max_drop)]
    for made, bound in in_fixed_order(sizes, make, test, max_drop):
        scored.append(made.against(full, bound, max_drop))
    place = last_passed(one.bound is not None and one.passed for one in scored)
    if place is None and further and _looks_good(scored, max_drop) == len(scored) - 1:
        for size in sizes[len(scored) - 1 :]:
            scored.append(make(size).against(full, None, max_drop))
            if not scored[-1].passed:
                break
    if place is None:
        place = max(_looks_good(scored, max_drop), int(outside is not None))
    return Search(promise, split, tuple(scored), scored[place], outside)


def _looks_good(scored: Sequence[Candidate[Key]], max_drop: float) -> int:
    """Return the index of the last size before the first with a drop above the promise."""
    bad = (i for i, one in enumerate(scored) if i and not one.drop <= max_drop)
    return next(bad, len(scored)) - 1
