"""A search whose test asks people for labels: of the rows alone on which answers differ.

The number of test rows is planned by the screened sizes, and the rows are drawn before one is
answered. Then sizes go in, from the largest on, as long as the rows to label are few enough; a size
needs labels if they can change the outcome of its test. By default the next size goes in once the
labels have certified the one before it; with `--ask-all` all go in at once.

No correction is needed, although which rows get a label may depend on earlier labels: the rows and
the order of the sizes are fixed before, and rows without a label count as lost. So whatever the
labels that are there, the bound of a size is at least the one that it has with all labels. A wrong
certificate needs the first size that breaks the promise to pass with all of its labels, too, which
has a probability of at most 1 - confidence. For the same reason a test may be read at any time, and
the limit be raised later.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import NO_VERDICT
from sora_cli.core.processes import from_first_process
from sora_cli.search.ask_table import NONE, Given, Question, id_of
from sora_cli.search.asked import Asked
from sora_cli.search.asked_labels import (
    AskedLabels,
    best_of,
    expected_share,
    largest_share,
    more_labels,
    sorted_rows,
)
from sora_cli.search.auto_search import AutoSearch
from sora_cli.search.evidence import Candidate, Screened
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import SCREENING
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import drop_bound
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks.row_scores import UNLABELLED, RowScores, answer_codes

_NEARLY_ALL = 0.99  # a larger promise is planned like this one


class TooManyLabelsError(SoraError):
    """Even the largest size differs on more rows than may be labelled: nothing is asked."""

    exit_code = NO_VERDICT


@dataclass(frozen=True)
class Questions:
    """The test rows as people see them.

    Attributes:
        rows: each with its id.
        answers: (rows,) by allowed label: the answer that it makes right.
    """

    rows: Sequence[Question]
    answers: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, part: TestRows, seed: int, salt: str) -> Questions:
        """Return the questions of test rows.

        Args:
            salt: names the run, so that its ids are no other run's.
        """
        asked = part.task.questions(part.rows, np.random.default_rng(seed))
        assert asked is not None  # see `basis.against_asking`
        shown = [
            dict(zip(asked.shown, texts, strict=True))
            for texts in zip(*asked.shown.values(), strict=True)
        ]
        rows = [
            Question(id_of(list(texts.values()), salt), texts, list(answers))
            for texts, answers in zip(shown, asked.answers, strict=True)
        ]
        return cls(rows, asked.answers)

    def codes(self, given: Mapping[str, Given]) -> np.ndarray:
        """Return the codes of the answers that labels make right, (rows, 2)."""
        codes = np.full((len(self.rows), 2), UNLABELLED)
        for number, (row, answers) in enumerate(zip(self.rows, self.answers, strict=True)):
            for place, label in enumerate(given.get(row.id, NONE)):
                if label in answers:
                    codes[number, place] = answer_codes([answers[label]])[0]
        return codes


Read = Callable[[Mapping[str, Question]], Mapping[str, Given]]
"""Returns the labels that people gave, by id, for the rows that are asked."""


@dataclass
class Wanted:
    """What is open after a search.

    Attributes:
        rows: rows to be labelled, by id.
        given: the labels that are known of them.
        open: number of rows whose label may change the outcome.
        more: about so many more labels certify the first size that is open; None: not known.
        kept: number of sizes that are certified already.
        left: labels that the next size would take, if it did not go in; None: all went in.
        unused: the rows that were not drawn to test.
    """

    rows: dict[str, Question] = field(default_factory=dict)
    given: Mapping[str, Given] = field(default_factory=dict)
    open: int = 0
    more: int | None = None
    kept: int = 0
    left: int | None = None
    unused: TestRows | None = None

    @property
    def answered(self) -> int:
        """Number of rows with a label."""
        return sum(any(labels) for labels in self.given.values())


def planned_rows(
    screened: Sequence[Screened],
    screening: int,
    promise: Promise,
    available: int,
    expected: Callable[[Screened, int], float] | None = None,
    *,
    all_lost: bool = False,
) -> int:
    """Return how many rows test: as many as the promise needs in four of five draws.

    By the share of rows on which a named size is expected to differ; see `rows_for_shares`.

    Args:
        screening: number of screening rows.
        available: rows that could test.
        expected: returns the share on which a size is expected to differ, by the number of
            screening rows; None: that of a cut before healing.
        all_lost: at least as many as the first size needs if each row that differs is lost.
    """
    share_of = expected or (lambda size, n: expected_share(size.share, size.screening.drop, n))
    named = [size for size in screened if size.named]
    shares, largest = [share_of(size, screening) for size in named], None
    if all_lost:
        largest = largest_share(round(named[0].screening.drop * screening), screening)
    return rows_for_shares(shares, promise, available, largest=largest)


def rows_for_shares(
    shares: Sequence[float], promise: Promise, available: int, *, largest: float | None = None
) -> int:
    """Return how many rows test sizes that differ on these shares of them.

    Of several sizes the one counts that needs most rows if half of the differing rows are lost, if
    its labels are few enough.

    Args:
        shares: from the largest size on.
        largest: the largest share on which the first size is likely to differ: then at least as
            many rows test as it needs if each row that differs is lost, if its labels are few
            enough even then. None: no more rows test.
    """
    from sora_cli.search.certifiable import rows_if_lost, rows_needed  # scipy

    labels = promise.labels or 0
    needed = [labels / shares[0]]
    if promise.max_drop > 0:
        drop, sure = min(promise.max_drop, _NEARLY_ALL), promise.confidence
        rows = [(rows_needed(drop, differing=share, confidence=sure), share) for share in shares]
        needed = [n for n, share in rows if n * share <= labels] or needed
        if largest is not None:
            most = min(int(labels / max(largest, shares[0])), available)
            reached = rows_if_lost(drop, shares[0], most, sure)
            # where no number of the rows there is enough, all of them come nearest
            needed.append(reached or (available if available <= most else 0))
    return max(min(round(max(needed)), available), 1)


class AskedSearch(AutoSearch):
    """A search that asks for labels; `run` leaves in `wanted` what is still open.

    Attributes:
        read: returns the labels that people gave; it must be set before `run`.
        enters: number of sizes that are known to have gone in; None: the answers tell.
        expected: see `planned_rows`.
        largest: name of the largest size.
    """

    read: Read
    enters: int | None = None
    expected: Callable[[Screened, int], float] | None = None
    largest: str = "the largest size"
    wanted: Wanted
    _questions: Questions

    @property
    def planned(self) -> int:
        """The number of test rows, once sizes were screened."""
        record, promise = self.record, self.promise
        assert record.asked is not None
        promise = record.asked.first(promise)  # a limit that was raised since draws no other rows
        screening, all_lost = record.rows[SCREENING].rows, record.asked.all_lost
        return planned_rows(
            record.screened, screening, promise, self.rows, self.expected, all_lost=all_lost
        )

    @property
    def tested(self) -> list[Candidate]:
        """The sizes until the first that failed; if none could be tested, the largest."""
        candidates = self.record.candidates
        return [size for size in candidates if size.test is not None] or candidates[:1]

    def run(self) -> Iterator[Candidate | None]:
        """Do all parts that the record does not have yet, and test with the labels that there are.

        Yields:
            After each part, to save the record: the size that was made, or None for another part.
        """
        yield from self.beginning()
        record = self.record
        if record.asked is None:
            # of another model nothing is known beforehand: `expected` gives the share
            record.asked = Asked(
                planned=self.promise.labels or 0, rows=0,
                by_size=True, all_lost=self.expected is None,
            )  # fmt: skip
        rows = record.asked.rows = self.planned
        record.asked.by_size &= not self.promise.ask_all
        part = self.maker.draw(rows)
        self.bound = AskedLabels().about(self.promise).method_on(rows, self.promise.confidence)
        yield None
        self.wanted = Wanted(unused=part.unused)
        assert record.full is not None
        self._questions = Questions.of(part, self.seeds["rows"], record.full.digest)
        entered, asked = yield from self._entered(rows)
        record.asked.sizes = len(entered)
        yield None
        yield from self._tested(entered, asked)

    def _entered(
        self, rows: int
    ) -> Generator[Candidate | None, None, tuple[list[RowScores], np.ndarray]]:
        """Make sizes from the largest on, as long as the rows to label are few enough.

        Returns:
            The scores of these sizes, and which rows are asked, (rows,) of bool.
        """
        record, most = self.record, self.promise.labels or 0
        entered, asked = list[RowScores](), np.zeros(rows, dtype=bool)
        for number, named in enumerate(record.named()):
            if self.enters is not None and number >= self.enters:
                break
            if number < len(record.candidates):
                scores: RowScores | None = self.maker.scored(number, named)
            else:
                made = from_first_process(self.maker.size(number, named, scored=True))
                if made is None:
                    break
                record.add(made[0])
                scores = made[1]
                yield record.candidates[-1]
            assert scores is not None
            labelled, goes_on = self._with_size(scores, asked)
            if self.enters is None and labelled.sum() > most:
                self.wanted.left = int(labelled.sum())
                break
            entered, asked = [*entered, scores], labelled
            if not goes_on:
                break
        if not entered and self.wanted.left is not None:
            assert record.full is not None
            raise TooManyLabelsError(
                f"nothing is asked: {self.largest} differs from {record.full.name} on "
                f"{self.wanted.left:,} of {rows:,} test rows, and {most:,} may be labelled",
                hint=f"the same command with --labels {self.wanted.left}; or a larger promise",
            )
        return entered, asked

    def _with_size(self, scores: RowScores, asked: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the rows that are asked with one more size, and whether the next one may go in.

        Size by size, a size's rows go in if the labels of the others do not decide about it; rows
        that have a label always do, so that none is ignored.

        Args:
            asked: the rows that are asked without it, (rows,) of bool.
        """
        full = self.maker.scores_at_full_rank()
        own, codes = asked | full.differs(scores), np.full((len(asked), 2), UNLABELLED)
        assert self.record.asked is not None
        by_size = self.record.asked.by_size
        if by_size:
            codes = self._questions.codes(self.read(self._rows(own)))
        asked = asked | (own & (codes != UNLABELLED).any(axis=1))
        state = self._state(self._test_of(_with(full, codes), _with(scores, codes)), len(full))
        if state == "open":
            asked = own
        return asked, state == "kept" or (state == "open" and not by_size)

    def _rows(self, asked: np.ndarray) -> dict[str, Question]:
        """Return the rows that are asked, by id."""
        rows = zip(self._questions.rows, asked, strict=True)
        return {row.id: row for row, is_asked in rows if is_asked}

    def _tested(
        self, entered: Sequence[RowScores], asked: np.ndarray
    ) -> Iterator[Candidate | None]:
        """Test the sizes that went in, with the labels that there are."""
        record, wanted = self.record, self.wanted
        wanted.rows = self._rows(asked)
        wanted.given = self.read(wanted.rows)
        codes, missing = self._questions.codes(wanted.given), np.zeros_like(asked)
        full, ended = _with(self.maker.scores_at_full_rank(), codes), False
        record.candidates = [size.model_copy(update={"test": None}) for size in record.candidates]
        for number, scores in enumerate(entered):
            small = _with(scores, codes)
            test = self._test_of(full, small)
            state = self._state(test, len(full))
            if not ended:  # else only whether labels of its rows are wanted
                size = record.candidates[number].model_copy(update={"test": test})
                record.candidates[number] = size
                yield size
            wanted.kept += test.kept and not ended
            if state == "open":
                missing |= sorted_rows(full, small)["missing"]
                if not ended and test.labelled is not None:
                    wanted.more = more_labels(test.labelled, len(full), self.promise)
            ended = ended or test.failed
            if state == "failed":
                break
        wanted.open = record.open = int(missing.sum())
        assert record.asked is not None
        record.asked = record.asked.with_answers(wanted.given)

    def _test_of(self, full: RowScores, small: RowScores) -> Bound:
        test = drop_bound(full, small, self.promise.confidence)
        return from_first_process(test).judged(self.promise.max_drop)

    def _state(self, test: Bound, rows: int) -> Literal["kept", "open", "failed"]:
        """Return what a test is; it is open if labels that are missing may change it."""
        counts, promise = test.labelled, self.promise
        if test.kept or counts is None:
            return "kept" if test.kept else "failed"
        best = best_of(counts, rows, promise.confidence)
        return "open" if counts.missing and best <= promise.max_drop else "failed"


def _with(scores: RowScores, codes: np.ndarray) -> RowScores:
    """Return scores with labels beside the answers.

    Args:
        codes: (rows, 2).
    """
    return replace(scores, parts=np.concatenate([scores.parts[:, :1], codes], axis=1))
