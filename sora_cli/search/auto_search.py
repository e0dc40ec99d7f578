"""A search of `sora auto`: full rank, screening, tests in a fixed order, and the certificate.

A `Maker` gives what is compared. One trains it (`experiments.auto.maker`), another reads what was
trained (`verify.again_search`), so a certificate is made and checked by the same search.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from sora_cli.core.processes import from_first_process
from sora_cli.report import BaseFacts
from sora_cli.search.evidence import Candidate, Evidence, Measured, Reference, Screened, choose
from sora_cli.search.promise import Promise
from sora_cli.search.record import SearchState
from sora_cli.search.search import in_fixed_order
from sora_cli.search.statistic import Bound, BoundMethod
from sora_cli.search.statistics import drop_bound
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks.row_scores import RowScores

Made = tuple[Candidate, RowScores | None]
"""A size with its scores on the test rows; None: no test could pass."""


class Maker(ABC):
    """Makes the run at full rank and the sizes that a search compares."""

    @abstractmethod
    def full_rank(self) -> Reference:
        """Return the run at full rank, scored."""

    @abstractmethod
    def screened(self, promise: Promise, bound: BoundMethod) -> list[Screened]:
        """Return the sizes scored before healing; the named sizes are to be tested."""

    @abstractmethod
    def size(self, number: int, named: Screened, *, scored: bool) -> Made | None:
        """Return a healed size; None: it is not there, which ends the testing.

        Args:
            number: of the size, from 0.
            named: the size as screening named it.
            scored: score it on the test rows.
        """

    @abstractmethod
    def scored(self, number: int, named: Screened) -> RowScores:
        """Return the scores of a size that was made before, on the test rows."""

    @abstractmethod
    def draw(self, rows: int) -> TestRows:
        """Draw test rows from the pool of rows without labels, and return them."""

    @abstractmethod
    def scores_at_full_rank(self) -> RowScores:
        """Return full rank's scores on the test rows."""

    def test(self, scores: RowScores, promise: Promise, seed: int) -> Bound:
        """Return the test of a size by its scores.

        Args:
            seed: of a bootstrap.
        """
        return drop_bound(self.scores_at_full_rank(), scores, promise.confidence, seed=seed)


class AutoSearch:
    """A search; its finished parts are in a record, and are not made again.

    Args:
        asked: the promise, as typed.
        rows: number of test rows.
        seeds: of the training, and of the rows.

    Attributes:
        promise: the promise, as a number even for `smallest`.
        bound: the method of the test.
        rows: number of test rows.
    """

    def __init__(
        self,
        maker: Maker,
        record: SearchState,
        asked: Promise,
        bound: BoundMethod,
        rows: int,
        seeds: Mapping[str, int],
    ) -> None:
        self.maker, self.record, self.bound, self.seeds = maker, record, bound, dict(seeds)
        self.promise, self.rows = asked.settled(bound, rows), rows

    @property
    def chosen(self) -> int:
        """Number of the size to write."""
        return choose(self.record.candidates)

    @property
    def tested(self) -> list[Candidate]:
        """The sizes of the certificate, in the order of their tests."""
        return list(self.record.candidates)

    def run(self) -> Iterator[Candidate | None]:
        """Do all parts that the record does not have yet.

        Yields:
            After each part, to save the record: the size that was made, or None for another part.
        """
        yield from self.beginning()
        record = self.record
        sizes = in_fixed_order(record.waiting(), self._made, self._test, self.promise.max_drop)
        for made, test in sizes:
            record.add(made[0].model_copy(update={"test": test}))
            yield record.candidates[-1]

    def beginning(self) -> Iterator[None]:
        """Train at full rank and screen, if the record does not have it yet."""
        record, maker = self.record, self.maker
        if record.full is None:
            record.full = from_first_process(maker.full_rank())
            yield None
        if not record.screened:
            record.screened = from_first_process(maker.screened(self.promise, self.bound))
            yield None

    def _made(self, named: Screened) -> Made | None:
        scored = self.bound.may_pass(self.promise.max_drop)
        return self.maker.size(len(self.record.candidates), named, scored=scored)

    def _test(self, made: Made) -> Bound | None:
        if made[1] is None:
            return None
        return self.maker.test(made[1], self.promise, self.seeds["rows"])

    def certificate(self, reported: Mapping[str, float], base: BaseFacts) -> Evidence:
        """Return the certificate, after `run`.

        Args:
            reported: scores of the written size by reported split.
            base: the base model.
        """
        record, promise = self.record, self.promise
        assert record.full is not None
        full, candidates = record.full, self.tested
        measured = {
            split: Measured(score=score, drop=promise.drop(full.reported[split], score))
            for split, score in reported.items()
        }
        written = candidates[self.chosen].model_copy(update={"reported": measured})
        candidates[self.chosen] = written
        bound, named = self.bound, record.named()
        if bound.smallest_drop is None and named:  # the estimate of the largest named size
            bound = bound.model_copy(update={"smallest_drop": named[0].certifiable})
        return Evidence(
            promise=promise,
            bound=bound,
            full=full,
            screened=record.screened,
            candidates=candidates,
            rows=record.rows,
            seeds=self.seeds,
            base=base,
            asked=record.asked,
        )
