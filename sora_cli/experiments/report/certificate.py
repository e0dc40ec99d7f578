"""The certificate of `sora auto` on a page: the promise, the sizes tried, and their curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.console import count
from sora_cli.core.figures import INK, QUIET, new_figure
from sora_cli.experiments.compare.plot_style import arrange, colour, finish, plain
from sora_cli.experiments.report.facts import number
from sora_cli.run.certificate import Candidate, Certificate

_SIZE = 4.8, 3.2
"""Width and height of the curve, inches."""


@dataclass(frozen=True)
class SizeRow:
    """A size that was trained or screened, its values as text."""

    parameters: str
    share: str
    components: str
    screening: str
    test: str
    upper: str
    verdict: str
    reported: str
    is_chosen: bool


@dataclass(frozen=True)
class CertificatePart:
    """The parts of a page that a certificate adds."""

    is_certified: bool
    statement: str
    lines: tuple[str, ...]
    rows: tuple[SizeRow, ...]
    reported: tuple[str, ...]


def certificate_part(certificate: Certificate) -> CertificatePart:
    """Return what the page shows of a certificate; the largest size first."""
    c = certificate
    reported = tuple(c.full.reported)
    return CertificatePart(
        is_certified=c.certified,
        statement=c.statement,
        lines=tuple(_lines(c)),
        rows=(_full_row(c, reported), *(_row(c, i, reported) for i in range(len(c.candidates)))),
        reported=reported,
    )


def _lines(c: Certificate) -> list[str]:
    promise, bound = c.promise, c.bound
    level = "holds at any number of rows" if bound.exact else "is approximate"
    lines = [
        f"asked for: {promise.metric} at most {promise.given} below the full rank, "
        f"{promise.confidence:.0%} confidence",
        f"the bound: {bound.method}; its level {level}",
    ]
    if bound.smallest_drop is not None:
        lines.append(f"the smallest loss these test rows can certify: {bound.smallest_drop:.4g}")
    rows = ", ".join(f"{n} {count(part.rows)} (of {part.split})" for n, part in c.rows.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in c.seeds.items())
    return [*lines, f"rows: {rows}", f"seeds: {seeds}", c.saved, c.scope]


def _full_row(c: Certificate, reported: Sequence[str]) -> SizeRow:
    return SizeRow(
        parameters=count(c.full.parameters),
        share="100%",
        components=count(c.full.components),
        screening="",
        test=number(c.full.test),
        upper="",
        verdict="full rank",
        reported=", ".join(number(c.full.reported[split]) for split in reported),
        is_chosen=False,
    )


def _row(c: Certificate, i: int, reported: Sequence[str]) -> SizeRow:
    candidate = c.candidates[i]
    test = candidate.test
    screened = (s for s in c.screened if s.parameters == candidate.parameters)
    screening = next((number(s.screening.score) for s in screened), "")
    scores = (candidate.reported.get(split) for split in reported)
    return SizeRow(
        parameters=count(candidate.parameters),
        share=f"{candidate.parameters / max(c.full.parameters, 1):.0%}",
        components=count(candidate.components),
        screening=screening,
        test="" if test is None else f"{number(test.score)} (drop {test.drop:+.4f})",
        upper="" if test is None else f"{test.upper:+.4f}",
        verdict=_verdict(c, i),
        reported=", ".join("" if s is None else number(s.score) for s in scores),
        is_chosen=i == c.chosen,
    )


def _verdict(c: Certificate, i: int) -> str:
    test = c.candidates[i].test
    said = "not tested" if test is None else "kept" if test.kept else "failed"
    return f"{said}, written" if i == c.chosen else said


def draw_curve(certificate: Certificate) -> Any:
    """Draw the score on the test rows against the size, down to the bound; the choice is marked.

    The band of each size reaches as far as its score may lie, at the promise's confidence; the
    dashed line is the promise.
    """
    c = certificate
    worse = -1 if c.promise.greater_is_better else 1
    figure = new_figure(*_SIZE, solved=False)
    axes = figure.subplots()
    finish(axes, "", "adapter parameters, % of the full rank's", plain(c.promise.metric))
    tested = sorted((one for one in c.candidates if one.test), key=lambda one: one.parameters)
    whole = max(c.full.parameters, 1)
    x = [100 * size.parameters / whole for size in tested]
    scores = [size.test.score for size in tested if size.test]
    bounds = [c.full.test + worse * size.test.upper for size in tested if size.test]
    axes.plot([*x, 100], [*scores, c.full.test], color=colour(0), marker="o", markersize=4,
              linewidth=1.6, label="test rows, healed")  # fmt: skip
    axes.fill_between([*x, 100], [*bounds, c.full.test], [*scores, c.full.test], color=colour(0),
                      alpha=0.2, linewidth=0, label="down to its bound")  # fmt: skip
    promised = c.full.test + worse * c.promise.max_drop
    low, high = _limits([*scores, *bounds, c.full.test, promised])
    seen = [size for size in c.screened if low <= size.screening.score <= high]
    if seen:
        places = [100 * size.parameters / whole for size in seen]
        left_out = len(c.screened) - len(seen)
        axes.plot(places, [size.screening.score for size in seen], color=QUIET, marker="x",
                  markersize=4, linestyle="", label="screening rows, unhealed"
                  + f" ({left_out} beyond)" * bool(left_out))  # fmt: skip
    axes.axhline(promised, color=colour(1), linewidth=1.1, linestyle=(0, (4, 2)),
                 label=f"promise: {plain(c.promise.given, 20)}")  # fmt: skip
    _mark(axes, c.written, whole)
    axes.set_xlim(0, 104)
    axes.set_ylim(low, high)
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK)
    arrange(figure, 1, 1, below=0.0)
    return figure


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the score's axis: room for the promise, not for all of screening."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    room = max(known) - min(known) or 1e-3
    return min(known) - room, max(known) + 0.5 * room


def _mark(axes: Any, written: Candidate, whole: int) -> None:
    if written.test is not None:
        axes.plot([100 * written.parameters / whole], [written.test.score], marker="o",
                  markersize=11, fillstyle="none", color=INK, linestyle="",
                  label="written")  # fmt: skip
