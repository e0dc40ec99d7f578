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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sora_cli.adapter.digest import result_digest
from sora_cli.core.processes import from_first_process
from sora_cli.search.asked import Asked
from sora_cli.search.evidence import Candidate, Command, Evidence, Reference, Screened
from sora_cli.search.kept_answers import Memory
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import RowSet
from sora_cli.search.statistic import AFTERWARDS, Bound, BoundMethod
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.search.test_rows import SEED, EncodedRows
from sora_cli.tasks.row_scores import RowScores

if TYPE_CHECKING:
    from sora_cli.search.asked_search import Wanted

Size = TypeVar("Size")
Made = TypeVar("Made")


def in_fixed_order(
    sizes: Iterable[Size],
    make: Callable[[Size], Made | None],
    test: Callable[[Made], Bound | None],
    max_drop: float,
) -> Iterator[tuple[Made, Bound | None]]:
    """Make and test sizes from largest to smallest until one fails; yield each with its test.

    All processes that train together get the first process's values.

    Args:
        sizes: from largest to smallest; their choice must not depend on the test rows.
        make: makes a size; not called after the first failure. None: it is not there, which ends
            the testing, too.
        test: tests a size's drop on the test rows; None: no test is possible.
        max_drop: the promise, in the metric's unit.
    """
    for size in sizes:
        # a yield comes before the check for failure, so that the failed size is recorded, too
        made = from_first_process(make(size))
        if made is None:
            return
        result = from_first_process(test(made))
        result = None if result is None else result.judged(max_drop)
        yield made, result
        if result is not None and result.failed:
            return


Scored = tuple[Candidate, RowScores]
"""A size that was made, and its scores on the test rows."""


@dataclass(frozen=True)
class Outcome:
    """What a search has found about a finished adapter.

    Attributes:
        promise: as a number even for `smallest`.
        bound: the method of the test.
        reference: what drops are measured against.
        candidates: the sizes that were made, each with its test.
        rows: the rows by part; those that test are among them.
        scores: of the reference on the test rows.
        asked, memory, left, tested: of a search that asks for labels: its record, what its result
            keeps of the labels, what is still open, and the rows that test.
        screened: sizes on the screening rows.
    """

    promise: Promise
    bound: BoundMethod
    reference: Reference
    candidates: list[Candidate]
    rows: Mapping[str, RowSet]
    scores: RowScores
    asked: Asked | None = None
    memory: Memory | None = None
    left: Wanted | None = None
    tested: EncodedRows | None = None
    screened: Sequence[Screened] = ()

    def evidence(self, command: Command, reference: Path, recipe: Mapping[str, Any]) -> Evidence:
        """Return the certificate of a command.

        Args:
            reference: directory of the reference.
            recipe: the resolved recipe of the rows, with the promise in its `auto` block.
        """
        known = {"directory": str(reference.absolute()), "digest": result_digest(reference) or ""}
        return Evidence(
            command=command,
            promise=self.promise,
            bound=self.bound,
            full=self.reference.model_copy(update=known),
            candidates=self.candidates,
            rows=dict(self.rows),
            screened=list(self.screened),
            asked=self.asked,
            seeds={"rows": SEED},
            recipe=dict(recipe),
        ).keep_labels(self.memory)


def sizes_tested(
    full: RowScores,
    sizes: Sequence[Size],
    make: Callable[[Size], Scored | None],
    promise: Promise,
    bound: BoundMethod,
    *,
    further: bool = True,
) -> tuple[list[Candidate], BoundMethod]:
    """Make and test sizes; return those that were made with their tests, and the completed method.

    Args:
        full: scores of the reference.
        sizes: from largest to smallest, fixed before a row is scored.
        make: makes and scores a size; None: it is not there, which ends the search.
        further: if no size passes, score smaller sizes without a test, as long as their drops are
            within the promise: the last of them is written, and is not certified.
    """
    found: list[Candidate] = []
    max_drop, statistic, smallest = promise.max_drop, statistic_of(full), bound.smallest_drop

    def test(made: Scored) -> Bound:
        return drop_bound(full, made[1], promise.confidence)

    for (size, scores), result in in_fixed_order(sizes, make, test, max_drop):
        found.append(size.model_copy(update={"test": result}))
        if smallest is None and result is not None and result.is_of_many:
            smallest = statistic.beside(full, scores, len(full), promise.confidence)
    tests = [size.test for size in found if size.test is not None]
    if further and all(not test.kept and test.drop <= max_drop for test in tests):
        for planned in sizes[len(found) :]:
            looked_at = make(planned)
            if looked_at is None:
                break
            size, scores = looked_at
            result = statistic.result(full, scores, None, refused=AFTERWARDS)
            found.append(size.model_copy(update={"test": result}))
            if not result.drop <= max_drop:
                break
    return found, bound.model_copy(update={"smallest_drop": smallest})
