"""Shared parts of a comparison's pictures: means over seeds, markers, axes of sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.figures import QUIET, colour, plain, short_number
from sora_cli.experiments.compare.runs import Group

MARKERS = "os^DvPX"
"""A marker for each colour of `core.figures.COLOURS`."""
_TICKS = 6
"""Most ticks on an axis, about."""
_WIDE = 10.0
"""Values that span more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation of a single value is 0."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Average the finite values; NaN if no value is finite."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return cls(math.nan, 0.0)
        mean = math.fsum(finite) / len(finite)
        squares = math.fsum((value - mean) ** 2 for value in finite)
        return cls(mean, math.sqrt(squares / (len(finite) - 1)) if len(finite) > 1 else 0.0)


def metric_spread(group: Group, factor: float = 1.0) -> Spread:
    """Return the spread of the group's metric times a factor."""
    return Spread.of(factor * value for value in group.metrics)


def parameter_spread(group: Group) -> Spread:
    """Return the spread of the group's parameters kept."""
    return Spread.of(run.parameters for run in group.runs)


def percent_factor(groups: Sequence[Group]) -> float:
    """Return 100 if papers print all these metrics in percent, otherwise 1."""
    return 100.0 if all(group.first.percent for group in groups) else 1.0


def metric_axis(groups: Sequence[Group], factor: float) -> str:
    """Return the title of an axis for the metric: "accuracy x 100"."""
    names = dict.fromkeys(group.first.metric_name for group in groups)
    lower = "" if groups[0].first.greater_is_better else " (smaller is better)"
    return plain(" / ".join(names) + (" x 100" if factor == 100 else "") + lower)


def styles(groups: Sequence[Group]) -> dict[str, tuple[str, str]]:
    """Assign a colour and a marker to each method, in order of first appearance."""
    methods = dict.fromkeys(group.method for group in groups)
    return {method: (colour(i), MARKERS[i % len(MARKERS)]) for i, method in enumerate(methods)}


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis; the logarithmic axis has a place for 0 at its left.

    Attributes:
        log: True for a logarithmic axis.
        low, high: limits of the values; on a logarithmic axis `low` is the smallest above 0.
        zero: True if 0 is among the values.
    """

    log: bool
    low: float
    high: float
    zero: bool

    @classmethod
    def of(cls, values: Iterable[float], *, from_zero: bool = False) -> Scale:
        """Choose the axis for these values; with `from_zero`, a linear axis begins at 0."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        above = [value for value in known if value > 0] or [1.0]
        log = max(above) > _WIDE * min(above) and min(known) >= 0
        low = min(above) if log else min([*known, *([0.0] if from_zero else [])])
        return cls(log, low, max([low, *above]) if log or from_zero else max(known), 0 in known)

    def at(self, value: float) -> float:
        """Return the x coordinate of a value."""
        return self._left if self.log and value == 0 else value

    @property
    def _left(self) -> float:
        # 0 has no place on a logarithmic axis: it goes about a fifth of the axis to the left of the
        # smallest value, a distance that was chosen by looking at pictures
        return self.low / max(math.pow(self.high / self.low, 0.22), 2.2)

    def apply(self, axes: Any, ticks: Sequence[float] = ()) -> None:
        """Set the scale, the limits and the ticks of the x axis.

        Args:
            ticks: values to mark if they are few; otherwise ticks are at round numbers.
        """
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        if self.log:
            left = self.at(0) if self.zero else self.low
            room = (self.high / left) ** 0.06
            axes.set_xscale("log")
            axes.set_xlim(left / room, self.high * room)
            axes.xaxis.set_minor_locator(NullLocator())
            places = [*([left] if self.zero else []), *self._ticks()]
            axes.xaxis.set_major_locator(FixedLocator(places))
            if self.zero:
                between = math.sqrt(left * self.low)
                axes.axvline(between, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        else:
            room = 0.06 * ((self.high - self.low) or 1)
            locator = axes.xaxis.get_major_locator()
            locator.set_params(nbins=6)
            right = self.high + room
            if not ticks:  # on to a tick beyond the largest value, so that it can be read off
                ticks_to_it = locator.tick_values(self.low, right)
                right = next((tick for tick in ticks_to_it if tick >= right), right)
            axes.set_xlim(self.low - room, right)
        if 0 < len(ticks) <= _TICKS:
            axes.xaxis.set_major_locator(FixedLocator([self.at(value) for value in ticks]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_number(self._value(x))))

    def _value(self, x: float) -> float:
        at_zero = self.log and self.zero and math.isclose(x, self._left, rel_tol=1e-6)
        return 0.0 if at_zero else x

    def _ticks(self) -> list[float]:
        """Return ticks at round numbers for a logarithmic axis."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps]
            ticks = [t for t in ticks if self.low * 0.95 <= t <= self.high * 1.05]
            if len(ticks) <= _TICKS:
                break
        return ticks[:: max(len(ticks) // _TICKS, 1)]
