"""Compare the scores of a certificate with new scores of the same adapters on the same rows.

On another machine sums are rounded differently, and a few rows may change their outcome. A share of
the rows is tolerated, and so is the change of the bound that these rows explain. If the scores
equal the certificate's, so do the rows, and only rounding is tolerated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel

from sora_cli.report import Score
from sora_cli.search.promise import Promise
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import statistic_of
from sora_cli.tasks.row_scores import RowScores

ROUNDING = 1e-6
"""Largest difference of equal numbers, as a share of the larger one or of 1."""
PART_OF_PROMISE = 1 / 5
"""A stored bound may be smaller than the new one by this part of the promise; one row always may
change. The tolerated rows alone could make a bound better by as much as the whole promise."""
_SAME = 1e-9
"""Largest difference of scores of the same rows: far less than one row in a million changes."""


def close(one: float, other: float, rounding: float = ROUNDING) -> bool:
    """Return true if two numbers are equal but for rounding; NaN equals NaN."""
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return math.isclose(one, other, rel_tol=rounding, abs_tol=rounding)


class Compared(BaseModel):
    """One figure of the certificate, with its new value.

    Attributes:
        name: of the figure.
        apart: the tolerated distance of the two values.
    """

    name: str
    stored: Score
    here: Score
    apart: float

    @property
    def agrees(self) -> bool:
        """True if the values are within the tolerated distance, or both are NaN."""
        both = self.stored != self.stored and self.here != self.here
        return both or abs(self.stored - self.here) <= self.apart + _SAME


@dataclass
class ScoresAgain:
    """The comparison of all scores.

    Attributes:
        share: of the rows that may change their outcome on another machine.
        compared: every figure that was computed again.
        unclear: verdicts that changed within the tolerance, a sentence each.
        better: bounds that the certificate says to be much smaller, within the tolerance.
    """

    share: float
    compared: list[Compared] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    better: list[str] = field(default_factory=list)

    def tolerated(self, rows: int) -> int:
        """Return the number of rows that may change their outcome; at least one may."""
        return max(int(self.share * rows), 1)

    def score(self, name: str, stored: float, here: RowScores) -> float:
        """Compare a score; return the stored one if it agrees, else the new one."""
        # a model agrees with itself on every row, whatever the machine
        statistic = statistic_of(here)
        alone = statistic.metric is not None
        distance = ROUNDING if alone else self._tolerated_distance(stored, here)
        return self._compare(name, stored, statistic.score(here, here), distance)

    def test(
        self,
        name: str,
        stored: Bound,
        whole: float,
        full: RowScores,
        here: Bound,
        promise: Promise,
    ) -> Bound:
        """Compare a size's test; return it with the stored figures that agree, and else new ones.

        Args:
            whole: the score at full rank in the certificate.
            full: the scores at full rank here.
            here: the test of the scores here.
        """
        figures: dict[str, Any] = {
            key: getattr(here, key) for key in ("refused", "passed_over", "least")
        }
        figures["every"] = self._every(name, stored.every, full, here)
        now = statistic_of(full).score(full, full)
        same = close(whole, now, _SAME) and close(stored.score, here.score, _SAME)
        if same and stored.differing == here.differing:
            for figure in ("score", "drop", "upper"):
                was, now = getattr(stored, figure), getattr(here, figure)
                apart = ROUNDING * max(1.0, abs(now))
                figures[figure] = self._compare(_figure_name(name, figure), was, now, apart)
            return stored.model_copy(update=figures)
        return stored.model_copy(update=self._tolerant(name, stored, whole, full, here, promise))

    def _tolerant(
        self,
        name: str,
        stored: Bound,
        whole: float,
        full: RowScores,
        here: Bound,
        promise: Promise,
    ) -> dict[str, Any]:
        """Compare a test with some rows of another outcome; return its figures, as `test` does.

        The drop, and with right-or-wrong scores the bound, must also follow from the other stored
        figures.
        """
        apart = self._tolerated_distance(stored.score, full)
        turned = 2 * self.tolerated(len(full))  # by either model
        score = self._compare(_figure_name(name, "score"), stored.score, here.score, apart)
        self._compare(_figure_name(name, "drop"), stored.drop, here.drop, 2 * apart)
        differing, now = stored.differing or 0, here.differing or 0
        differing = int(self._compare(f"{name}, rows that differ", differing, now, turned))
        statistic, rows, sure = statistic_of(full), len(full), promise.confidence
        drop, upper = statistic.drop_between(whole, score, promise), stored.upper
        alike = statistic.comparable(stored, here)
        if alike:
            allowed = statistic.apart(full, here, sure, turned)
            upper = self._compare(_figure_name(name, "upper"), stored.upper, here.upper, allowed)
            one_row = statistic.apart(full, here, sure, 2)  # by either model
            if here.upper - stored.upper > max(PART_OF_PROMISE * promise.max_drop, one_row):
                self.better.append(
                    f"{name}: a bound of {stored.upper:.6g} in the certificate, {here.upper:.6g} "
                    "here: the tolerated rows explain it, but it is much better than here"
                )
        if not alike or stored.verdict != here.verdict:
            self.unclear.append(
                f"{name}: {_in_words(stored)} in the certificate, {_in_words(here)} here; the "
                f"promise is {promise.max_drop:g}"
            )
        differing = statistic.differing(drop, differing, rows)
        following = statistic.following(drop, differing, rows, sure)
        if following is not None and upper == stored.upper:
            upper = following
        return {
            "score": score,
            "drop": _stored_if_close(stored.drop, drop),
            "upper": _stored_if_close(stored.upper, upper),
            "differing": differing,
        }

    def _every(self, name: str, stored: float | None, full: RowScores, here: Bound) -> float | None:
        """Compare the drop on all rows as they come; return the stored one if it agrees."""
        if stored is None or here.every is None or full.every is None:
            return here.every
        rows = len(full.every)
        apart = 2 * self.tolerated(rows) / rows * max(1.0, abs(full.every.value))
        if close(stored, here.every):
            apart = ROUNDING
        return self._compare(f"{name}, drop on all rows", stored, here.every, apart)

    def _compare(self, name: str, stored: float, here: float, apart: float) -> float:
        figure = Compared(name=name, stored=stored, here=here, apart=apart)
        self.compared.append(figure)
        return stored if figure.agrees else here

    def _tolerated_distance(self, stored: float, scores: RowScores) -> float:
        """Return the largest change of a metric that the tolerated rows can make."""
        rows = len(scores)
        by_rows = statistic_of(scores).counts_rows
        if by_rows and not close(stored * rows, np.round(stored * rows)):
            return ROUNDING  # no number of rows is right
        return self.tolerated(rows) / rows * max(1.0, abs(scores.value))


def _stored_if_close(stored: float, here: float) -> float:
    """Return the stored number if it equals the new number but for rounding, or else `here`."""
    return stored if close(stored, here) else here


def _figure_name(name: str, figure: str) -> str:
    return f"{name}, {'bound' if figure == 'upper' else figure}"


def _in_words(test: Bound) -> str:
    bound = f"a bound of {test.upper:.6g}" if test.refused is None else f"no bound ({test.refused})"
    return f"{test.verdict} by {bound} with {test.differing} differing rows"
