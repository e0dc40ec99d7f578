"""What a promise is about: the rows of two models compared by one number, and its upper bound.

A `Statistic` is one class: how two models' rows are compared, the upper bound of the difference,
the difference that a number of rows can be expected to certify, and the nouns of the sentences
about it. `search.statistics` has the list; a search takes the first that measures its rows, and
nothing else in the program asks which one it is. scipy is imported where it computes: certificates
are read without it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, Field

from sora_cli.report import Score
from sora_cli.search.sizes import SHARES

if TYPE_CHECKING:
    from sora_cli.search.promise import Promise
    from sora_cli.tasks.row_scores import RowScores

POWER = 0.8
"""Probability with which rows are expected to certify a drop."""
DIFFERING = 0.025
"""Assumed share of rows on which two sizes of one adapter differ, as long as none is measured."""
FULL_RANK = "full rank"
"""Name of the reference of a search."""
AFTERWARDS = "scored after the testing had ended"
"""The reason for having no bound of sizes that were only looked at."""
RESAMPLES = 5000
"""Of a bootstrap, where a statistic draws one."""
STEP = 2
"""Places in the list of sizes to the next bolder one."""
FEWEST_ROWS = 50
"""Rows of a bootstrap: the number that is asked before training, and by the bound itself."""
FEWEST_DIFFERING = 20
"""Differing rows of a bootstrap; with fewer, a simulation gave up to 17 % false certificates at a
level of 5 %."""
_BEFOREHAND = 20
"""Weight of the drop that is expected before screening, in right-or-wrong rows."""


class Labelled(BaseModel):
    """The rows that two models answer differently, by the labels that people gave them."""

    lost: int = Field(description="rows whose label is the reference's answer")
    won: int = Field(description="rows whose label is the size's answer")
    neither: int = Field(description="rows whose label is the answer of neither")
    missing: int = Field(
        description="rows without a label, which count as lost; if a tenth of the labels or more "
        "are the answer of neither, with those of them that have no second label"
    )
    alone: int = Field(
        0, description="of the missing: rows that have a label and need a second one"
    )
    disagree: int = Field(0, description="rows with two labels that disagree, which count as lost")
    strict: Score = Field(
        math.nan,
        description="upper bound of the drop with the rows of `neither` counted as lost, too",
    )

    @property
    def differing(self) -> int:
        """Number of the rows."""
        return self.lost + self.won + self.neither + self.missing + self.disagree

    @property
    def strictly(self) -> Self:
        """The counts with the labels of neither model taken for none."""
        return self.model_copy(update={"missing": self.missing + self.neither, "neither": 0})


class Bound(BaseModel):
    """The drop from one model to another on the test rows, with its upper confidence bound."""

    score: Score = Field(description="the metric; of answers, the share on which both agree")
    drop: Score = Field(description="drop against the reference; negative: better")
    upper: Score = Field(description="upper bound of the drop at the promise's confidence")
    lower: Score | None = Field(
        None,
        description="of two models that sora verify compares: lower bound of the drop, at the same "
        "confidence; null: not computed",
    )
    kept: bool = Field(False, description="whether the bound is within the promise")
    differing: int | None = Field(
        None, description="number of rows whose score differs from the reference's"
    )
    every: Score | None = Field(
        None,
        description="drop on all test rows as they come, where some repeat an input and do not "
        "test; it has no bound; null: all of them test",
    )
    refused: str | None = Field(
        None, description="reason for having no bound; null: there is a bound"
    )
    least: float | None = Field(
        None,
        description="where few rows differ: the bound of a model that differs on none, the "
        "smallest possible here; null: enough rows differ, or there is no bound",
    )
    labelled: Labelled | None = Field(
        None, description="with asked labels: the rows that differ, by their labels"
    )
    passed_over: bool = Field(
        False,
        description="whether so few rows differ from the reference that no such adapter could "
        "pass; this is no failure, and the testing goes on",
    )

    def judged(self, max_drop: float, *, exact: bool = False) -> Self:
        """Return the bound with its verdict on a promise.

        A size that differs on too few rows to pass neither passes nor fails, and testing goes on.
        This does not bias the next tests: it depends only on the number of differing rows, not on
        their losses.

        Args:
            exact: no size is passed over, whatever is stored.
        """
        kept = self.keeps(max_drop)
        over = self.passed_over if self.least is None else self.least > max_drop
        return self.model_copy(
            update={"kept": kept, "passed_over": over and not kept and not exact}
        )

    def keeps(self, max_drop: float) -> bool:
        """Return True if the bound is within a promise."""
        return self.upper <= max_drop  # NaN is not

    def breaks(self, max_drop: float) -> bool:
        """Return True if the drop is shown to be above a promise."""
        return self.lower is not None and self.lower > max_drop  # NaN is not

    @property
    def verdict(self) -> str:
        """The result: `passed`, `failed`, `passed over` or `not tested`."""
        if self.refused == AFTERWARDS:
            return "not tested"
        return "passed" if self.kept else "passed over" if self.passed_over else "failed"

    @property
    def failed(self) -> bool:
        """True if this test ended the testing."""
        return self.verdict == "failed"

    @property
    def is_of_many(self) -> bool:
        """True if enough rows differ for the usual bound, and it was computed."""
        return self.refused is None and self.least is None


class BoundMethod(BaseModel):
    """The statistic of a promise on its test rows, and the drop that they can certify."""

    statistic: str | None = Field(
        None, description="name of what is compared; null: in certificates of earlier versions"
    )
    method: str = Field(description="the method of the bound, with its source")
    exact: bool = Field(
        description="true: the confidence holds for any number of rows; false: for many rows"
    )
    rows_alone: bool = Field(
        True,
        description="false: each row chooses among all test rows, so the rows depend on each other "
        "and no bound is exact",
    )
    smallest_drop: float | None = Field(
        description="the smallest drop that the test rows can be expected to certify: computed "
        "before training, or for an approximate bound after screening; null: not known"
    )
    best_case: float | None = Field(
        None, description="the same if no row differs at all; null: not known"
    )

    def may_pass(self, max_drop: float) -> bool:
        """Return False if no model could pass a test of `max_drop` on these rows."""
        return self.best_case is None or self.best_case <= max_drop


@dataclass(frozen=True)
class Expected:
    """What screening expects of a size before it is healed.

    Attributes:
        drop: expected drop; None: the one on the screening rows.
        certifiable: what the test rows can be expected to certify beside it; None: not known.
        differing: test rows that can be expected to differ, if the bound needs many; else None.
    """

    drop: float | None
    certifiable: float | None
    differing: float | None = None


@dataclass(frozen=True)
class Nouns:
    """The words of a statistic in the sentences about a promise.

    Attributes:
        promised: the promise, such as "accuracy is at most 0.01 worse".
        end: names the reference after it, such as " than at full rank".
        may: what a failed test leaves possible; {} stands for the bound.
        tolerated: the promised number in words.
        because: why a bound of a share is one of the metric; {} stands for the share.
        loss: what is bounded: "loss", or "share".
        percent: drops are told in per cent.
        column, form: head and format of the column of drops.
        axis: the drop as the label of an axis.
        counts: the number of rows that differ is told, and not the drop.
        things, differ: what differs or not, one of each row, and the verb.
        labels: the rows have labels.
    """

    promised: str
    end: str
    may: str
    tolerated: str
    axis: str
    because: str = ""
    loss: str = "loss"
    percent: bool = False
    column: str = "drop"
    form: str = "+.4f"
    counts: bool = False
    things: str = "answers"
    differ: str = "differ"
    labels: bool = True

    @property
    def broken(self) -> str:
        """The opposite of the promise."""
        return self.promised.replace("at most", "more than")

    def amount(self, drop: float) -> str:
        """Return a drop or a bound in its unit."""
        return f"{100 * drop:.2f} %" if self.percent else f"{drop:.4f}"


class Statistic(ABC):
    """One way of comparing two models on the same rows.

    Attributes:
        name: recorded in certificates.
        method: the bound's method with its source, after "exact" or "approximate".
        exact: the confidence holds for any number of independent rows.
        metric: name of the number that is compared; None: the recipe's main metric.
        counts_rows: the number is a count of rows, as a share of them.
        fewest: number of test rows without which there is no bound.
    """

    name: ClassVar[str]
    method: ClassVar[str]
    exact: ClassVar[bool] = False
    metric: ClassVar[str | None] = None
    counts_rows: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def about(self, promise: Promise) -> Self:
        """Return the statistic with what a promise says of it."""
        del promise
        return self

    @abstractmethod
    def measures(self, scores: RowScores) -> bool:
        """Return True for scores that this statistic compares."""

    def drop(self, full: RowScores, small: RowScores) -> float:
        """Return the drop from `full` to `small` on all rows."""
        from sora_cli.search.bca import drop_on

        return drop_on(full, small)

    def score(self, full: RowScores, small: RowScores) -> float:
        """Return the number that a model gets beside the reference."""
        del full
        return small.value

    def drop_between(self, full: float, score: float, promise: Promise) -> float:
        """Return the drop from the reference's number to a model's."""
        return promise.drop(full, score)

    @abstractmethod
    def bound(
        self, full: RowScores, small: RowScores, confidence: float, *, seed: int, resamples: int
    ) -> Bound:
        """Return the drop from `full` to `small` on the same rows, with its upper bound.

        Args:
            seed, resamples: of a bootstrap.
        """

    def result(self, full: RowScores, small: RowScores, upper: float | None, **more: Any) -> Bound:
        """Return a bound with what was measured; `upper` None: there is none."""
        return Bound(
            score=self.score(full, small),
            drop=self.drop(full, small),
            upper=math.nan if upper is None else upper,
            differing=int(full.differs(small).sum()),
            **more,
        )

    def lower(
        self, test: Bound, rows: int, confidence: float, exchanged: Callable[[], Bound]
    ) -> float | None:
        """Return the lower bound of a drop: minus the bound with the two models exchanged.

        Args:
            test: the drop.
            rows: number of test rows.
            exchanged: returns the bound of the drop from the other model to the reference.

        Returns:
            None: there is no bound.
        """
        del test, rows, confidence
        bound = exchanged()
        return None if bound.refused is not None else -bound.upper

    # what rows can certify, computed without a look at any drop

    def best_case(self, rows: int, confidence: float) -> float | None:
        """Return the smallest drop that is certified if no row differs; None: not known."""
        del rows, confidence
        return None

    def smallest(self, rows: int, confidence: float, differing: float = DIFFERING) -> float | None:
        """Return the drop that rows certify with a probability of `POWER`, if nothing is lost.

        Args:
            differing: share of rows on which the models differ.

        Returns:
            None: it is known only after sizes have been scored.
        """
        del rows, confidence, differing
        return None

    def beside(
        self, full: RowScores, small: RowScores, rows: int, confidence: float
    ) -> float | None:
        """Return what rows can be expected to certify, by two models' scores on other rows.

        Only the number of differing rows, or the spread of their scores, is used.
        """
        return self.smallest(rows, confidence, float(full.differs(small).mean()))

    # the choice of sizes

    @abstractmethod
    def expected(
        self, share: float, full: RowScores, small: RowScores, rows: int, confidence: float
    ) -> Expected:
        """Return what screening expects of a size.

        Args:
            share: of full rank's parameters.
            full, small: scores on the screening rows of the uncut checkpoint and of the cut.
            rows: number of test rows.
        """

    def places(self, safe: int, liked: int, most: int) -> Sequence[int]:
        """Return the places in the list of sizes to train; see `screening.name_sizes`.

        Args:
            safe, liked: the places of the safe and of the liked size.
            most: largest number of sizes.
        """
        return [safe, liked, *(liked + STEP * n for n in range(1, most))]

    # the same test on another machine

    def comparable(self, one: Bound, other: Bound) -> bool:
        """Return True if two bounds were computed by the same formula."""
        return one.refused == other.refused

    @abstractmethod
    def apart(self, full: RowScores, here: Bound, confidence: float, rows: int) -> float:
        """Return the distance of two bounds that so many rows with another outcome explain."""

    def differing(self, drop: float, stored: int, rows: int) -> int:
        """Return the number of differing rows that follows from a drop, or the stored one."""
        del drop, rows
        return stored

    def following(self, drop: float, differing: int, rows: int, confidence: float) -> float | None:
        """Return the bound that follows from a drop and the number of differing rows.

        NaN: no rows give such a drop; None: the bound needs more than these two numbers.
        """
        del drop, differing, rows, confidence
        return None

    def followed(self, test: Bound, full: float, rows: int, promise: Promise) -> Bound:
        """Return a test with drop, differing rows and bound as they follow from other figures.

        Args:
            full: the reference's score.
        """
        drop = self.drop_between(full, test.score, promise)
        differing = self.differing(drop, test.differing or 0, rows)
        upper = self.following(drop, differing, rows, promise.confidence)
        upper = test.upper if upper is None else upper
        return test.model_copy(update={"drop": drop, "differing": differing, "upper": upper})

    # words

    def remark(self, test: Bound, promise: Promise) -> str:
        """Return the end of a sentence on a test; "": there is nothing to add."""
        del test, promise
        return ""

    def method_on(self, rows: int, confidence: float, *, rows_alone: bool = True) -> BoundMethod:
        """Return the method of the bound on a number of rows, and what they can certify.

        Args:
            rows_alone: the rows are independent; see `RowScores`.
        """
        exact = self.exact and rows_alone
        return BoundMethod(
            statistic=self.name,
            method=f"{'exact' if exact else 'approximate'}{self.method}",
            exact=exact,
            rows_alone=rows_alone,
            smallest_drop=self.smallest(rows, confidence),
            best_case=self.best_case(rows, confidence),
        )

    def nouns(self, promise: Promise, reference: str = FULL_RANK) -> Nouns:
        """Return the words about a promise.

        Args:
            reference: its name, such as "the uncut adapter".
        """
        than = f"at {reference}" if reference == FULL_RANK else f"{reference}'s"
        return Nouns(
            promised=f"{promise.metric} is at most {promise.max_drop:g} worse",
            end=f" than {than}",
            may=f"{promise.metric} may be {{}} worse",
            tolerated=f"{promise.max_drop:g}",
            axis=f"drop of {promise.metric} against {reference}",
        )


class OfRows(Statistic):
    """A share of the rows; the drop that rows can certify is known before any row is scored."""

    exact = True
    counts_rows = True

    @abstractmethod
    def smallest(self, rows: int, confidence: float, differing: float = DIFFERING) -> float:
        """Return the drop that rows certify with a probability of `POWER`, if nothing is lost."""

    @abstractmethod
    def chance(self, max_drop: float, rows: int, differing: float, confidence: float) -> float:
        """Return the probability that rows certify a drop, if nothing is lost."""


def mixed(
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
        rows: number of screening rows.
        worth: drop of the metric if all rows were lost, as a multiple of accuracy's.
    """
    differing = min(DIFFERING * SHARES[0] / share, 1.0)
    weight = _BEFOREHAND / (rows + _BEFOREHAND)
    mean = weight * differing + (1 - weight) * seen
    expected = weight * worth * differing / 2 + (1 - weight) * drop
    return expected, max(round(mean, 3), DIFFERING)
