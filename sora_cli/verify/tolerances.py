"""Compare the figures of a certificate with new ones: one table says how far each may differ.

On another machine sums are rounded differently, and a few rows may change their outcome. A share of
the rows is tolerated, and so is the change of a bound that these rows explain. If the scores equal
the certificate's, so do the rows, and only rounding is tolerated. A field that is not in the table
must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel

from sora_cli.report import Score
from sora_cli.search.evidence import Evidence
from sora_cli.search.promise import Promise
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import statistic_of
from sora_cli.tasks.row_scores import RowScores

TOLERANCE = 0.005
"""Share of the rows that may change their outcome on another machine; one row always may."""
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


def tolerated(rows: int, share: float = TOLERANCE) -> int:
    """Return the number of rows that may change their outcome; at least one may."""
    return max(int(share * rows), 1)


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


@dataclass(frozen=True)
class Place:
    """Where a figure stands, which decides how far it may differ.

    Attributes:
        scores: of the reference on the rows that the figure is about.
        share: of these rows that may change their outcome.
        was: the stored test that the figure is of; None: it is of none.
        now: the new one.
        same: both tests are of rows with the same outcomes.
    """

    scores: RowScores
    promise: Promise
    share: float
    was: Bound | None = None
    now: Bound | None = None
    same: bool = False

    @property
    def turned(self) -> int:
        """The number of rows with another outcome that is tolerated, of one model."""
        return tolerated(len(self.scores), self.share)

    @property
    def comparable(self) -> bool:
        """True if both tests have bounds of the same formula."""
        assert self.was is not None
        assert self.now is not None
        return statistic_of(self.scores).comparable(self.was, self.now)

    def bounds_apart(self, rows: int) -> float:
        """Return the distance of two bounds that so many rows with another outcome explain."""
        assert self.now is not None
        statistic, confidence = statistic_of(self.scores), self.promise.confidence
        return statistic.apart(self.scores, self.now, confidence, rows)


def _rounding(here: float) -> float:
    return ROUNDING * max(1.0, abs(here))


def _of_rows(place: Place, stored: float) -> float:
    """Return the largest change of a metric that the tolerated rows can make."""
    rows, counts = len(place.scores), statistic_of(place.scores).counts_rows
    if counts and not close(stored * rows, np.round(stored * rows)):
        return ROUNDING  # no number of rows is right
    return place.turned / rows * max(1.0, abs(place.scores.value))


def _of_a_model(place: Place, stored: float, here: float) -> float:
    del here
    # a model agrees with itself on every row, whatever the machine
    alone = statistic_of(place.scores).metric is not None
    return ROUNDING if alone else _of_rows(place, stored)


def _of_a_size(place: Place, stored: float, here: float) -> float:
    return _rounding(here) if place.same else _of_rows(place, stored)


def _of_two_models(place: Place, stored: float, here: float) -> float:
    return _rounding(here) if place.same else 2 * _of_rows(place, stored)


def _differing(place: Place, stored: float, here: float) -> float:
    del stored, here
    return 0 if place.same else 2 * place.turned  # by either model


def _bound(place: Place, stored: float, here: float) -> float | None:
    del stored
    if place.same:
        return _rounding(here)
    return place.bounds_apart(2 * place.turned) if place.comparable else None


def _on_all_rows(place: Place, stored: float, here: float) -> float:
    every = place.scores.every
    if every is None or close(stored, here):
        return ROUNDING
    turned = tolerated(len(every), place.share)
    return 2 * turned / len(every) * max(1.0, abs(every.value))


Tolerance = Callable[[Place, float, float], float | None]
"""Returns the tolerated distance of a stored and a new figure; None: they cannot be compared."""

TOLERANCES: Mapping[tuple[str, ...], tuple[str, Tolerance]] = {
    ("full", "test"): ("{of}", _of_a_model),
    ("full", "reported", "*"): ("{of}, {key}", _of_a_model),
    ("candidates", "*", "test", "score"): ("{of}, score", _of_a_size),
    ("candidates", "*", "test", "drop"): ("{of}, drop", _of_two_models),
    ("candidates", "*", "test", "upper"): ("{of}, bound", _bound),
    ("candidates", "*", "test", "differing"): ("{of}, rows that differ", _differing),
    ("candidates", "*", "test", "labelled", "strict"): ("{of}, bound with neither's", _bound),
    ("candidates", "*", "test", "labelled", "*"): ("{of}, rows {key}", _differing),
    ("candidates", "*", "test", "every"): ("{of}, drop on all rows", _on_all_rows),
    ("candidates", "*", "reported", "*", "score"): ("{of}, {split}", _of_a_model),
}
"""The fields that may differ: the figure's name, and how far. `of` is the model, `key` the last
key, `split` the one before."""


@dataclass
class Comparison:
    """A certificate beside the same computed anew.

    Attributes:
        agreed: what was computed, with the stored figures that agree with it.
        compared: every figure of the table.
        unclear: verdicts that changed within the tolerance, a sentence each.
        better: bounds that the certificate says to be much smaller, within the tolerance.
    """

    agreed: Evidence
    compared: list[Compared] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    better: list[str] = field(default_factory=list)


def compare(
    stored: Evidence,
    here: Evidence,
    scores: RowScores,
    reported: Mapping[str, RowScores],
    share: float = TOLERANCE,
) -> Comparison:
    """Compare the figures of two certificates.

    Args:
        stored: the certificate.
        here: the same, computed anew.
        scores: of the reference on the test rows.
        reported: of the reference by reported split.
        share: of the rows that may change their outcome.
    """
    figures, document, was = Comparison(here), here.model_dump(), stored.model_dump()
    whole = Place(scores, here.promise, share)
    places = [_place(whole, stored, here, number) for number in range(len(here.candidates))]
    for path in list(_leaves(document)):
        name, tolerance = _known(path)
        old, new = _at(was, path), _at(document, path)
        if tolerance is None or old is None or new is None:
            continue
        of, place = here.full.name, whole
        if path[0] == "candidates":
            of, place = _name(here.candidates[path[1]].directory, path[1]), places[path[1]]
        if "reported" in path:
            place = Place(reported[path[path.index("reported") + 1]], here.promise, share)
        apart = tolerance(place, old, new)
        if apart is not None:
            name = name.format(of=of, key=path[-1], split=path[-2])
            figure = Compared(name=name, stored=old, here=new, apart=apart)
            figures.compared.append(figure)
        if apart is None or figure.agrees:
            _at(document, path[:-1])[path[-1]] = old
    for number, place in enumerate(places):
        if place.was is not None and place.now is not None and not place.same:
            _follow(document, number, place)
            _judge(figures, here, number, place)
    _measure(document, here.promise)
    turned = next((number for number, place in enumerate(places) if _turned(place)), None)
    if turned is not None:
        _as_stored(document, was, turned, figures)
    figures.agreed = Evidence.model_validate(document)
    return figures


def _place(whole: Place, stored: Evidence, here: Evidence, number: int) -> Place:
    """Return the place of a candidate's figures."""
    now = here.candidates[number].test
    was = stored.candidates[number].test if number < len(stored.candidates) else None
    if was is None or now is None:
        return whole
    same = (
        close(stored.full.test, here.full.test, _SAME)
        and close(was.score, now.score, _SAME)
        and was.differing == now.differing
    )
    return Place(whole.scores, whole.promise, whole.share, was, now, same)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value that is no dict and no list."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))
    else:
        yield path


def _known(path: tuple[Any, ...]) -> tuple[str, Tolerance | None]:
    """Return the row of the table for a path."""
    for pattern, found in TOLERANCES.items():
        pairs = zip(pattern, path, strict=False)
        if len(pattern) == len(path) and all(key in ("*", part) for key, part in pairs):
            return found
    return "", None


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    """Return the value at a path; None: there is none."""
    for key in path:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def _follow(document: dict[str, Any], number: int, place: Place) -> None:
    """Let drop, number of differing rows and bound be those that follow from the other figures."""
    assert place.was is not None
    test, rows = document["candidates"][number]["test"], len(place.scores)
    follows = statistic_of(place.scores).followed(
        Bound.model_validate(test), document["full"]["test"], rows, place.promise
    )
    test["drop"] = place.was.drop if close(place.was.drop, follows.drop) else follows.drop
    test["differing"] = follows.differing
    taken = test["upper"] == place.was.upper
    if taken and not close(test["upper"], follows.upper):
        test["upper"] = follows.upper
    if test["labelled"] is not None and follows.labelled is not None:
        if close(test["labelled"]["strict"], follows.labelled.strict):
            follows.labelled.strict = test["labelled"]["strict"]
        test["labelled"] = follows.labelled.model_dump()


def _judge(figures: Comparison, here: Evidence, number: int, place: Place) -> None:
    """Say what the tolerance allows, and is too much to be called the same."""
    was, now = place.was, place.now
    assert was is not None
    assert now is not None
    of, promised = _name(here.candidates[number].directory, number), place.promise.max_drop
    one_row = 2  # by either model
    if place.comparable and now.upper - was.upper > max(
        PART_OF_PROMISE * promised, place.bounds_apart(one_row)
    ):
        figures.better.append(
            f"{of}: a bound of {was.upper:.6g} in the certificate, {now.upper:.6g} "
            "here: the tolerated rows explain it, but it is much better than here"
        )
    if not place.comparable or _turned(place):
        figures.unclear.append(
            f"{of}: {_in_words(was)} in the certificate, {_in_words(now)} here; the "
            f"promise is {promised:g}"
        )


def _turned(place: Place) -> bool:
    """Return True if the two tests have different verdicts, by rows with another outcome."""
    if place.was is None or place.now is None or place.same:
        return False
    return place.was.verdict != place.now.verdict


def _measure(document: dict[str, Any], promise: Promise) -> None:
    """Let each reported drop be that of its scores."""
    full = document["full"]["reported"]
    for candidate in document["candidates"]:
        for split, measured in candidate["reported"].items():
            measured["drop"] = promise.drop(full[split], measured["score"])


def _as_stored(
    document: dict[str, Any], was: dict[str, Any], turned: int, figures: Comparison
) -> None:
    """Take over what another verdict leads to: the sizes after it, and the size that is written.

    Args:
        turned: number of the size with another verdict.
    """
    after = was["candidates"][turned + 1 :]
    document["candidates"][turned + 1 :] = after
    for size, stored in zip(document["candidates"], was["candidates"], strict=True):
        size["reported"] = stored["reported"]
        if size["directory"] is None:  # a cut size has a digest only if it is written
            size["digest"] = stored["digest"]
    for number, size in enumerate(after, turned + 1):
        of = _name(size["directory"], number)
        figures.unclear.append(f"{of}: not compared, as the test before it cannot be told")


def _name(directory: str | None, number: int) -> str:
    """Return the name of a candidate: its directory, or its number from 1."""
    return directory or f"size {number + 1}"


def _in_words(test: Bound) -> str:
    bound = f"a bound of {test.upper:.6g}" if test.refused is None else f"no bound ({test.refused})"
    return f"{test.verdict} by {bound} with {test.differing} differing rows"
