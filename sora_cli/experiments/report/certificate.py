"""The certificate of `sora auto` on a page: the promise, the sizes tried, and their curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.console import count
from sora_cli.core.figures import INK, new_figure
from sora_cli.experiments.auto.plot import draw_curve, legend_of
from sora_cli.experiments.compare.plot_style import arrange, finish, plain
from sora_cli.experiments.report.facts import number
from sora_cli.search.certificate import Certificate
from sora_cli.search.words import size_verdict

_SIZE = 5.0, 4.2
"""Width and height of the curve, inches."""
_NO_TITLE = -0.25  # inches of the margin above that a title would take


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
        f"asked for: {promise.metric} at most {promise.given} worse than at full rank, "
        f"{promise.confidence:.0%} confidence",
        f"the bound: {bound.method}; its level {level}",
    ]
    if bound.smallest_drop is not None:
        lines.append(f"the smallest loss these test rows can certify: {bound.smallest_drop:.4g}")
    rows = ", ".join(f"{n} {count(part.rows)} (of {part.split})" for n, part in c.rows.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in c.seeds.items())
    return [*lines, f"rows: {rows}", f"seeds: {seeds}", f"kept: {c.saved}", f"it is for {c.scope}"]


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
    screened = (s for s in c.screened if s.max_params == candidate.max_params)
    screening = next((number(s.screening.score) for s in screened), "")
    scores = (candidate.reported.get(split) for split in reported)
    return SizeRow(
        parameters=count(candidate.parameters),
        share=f"{candidate.parameters / max(c.full.parameters, 1):.0%}",
        components=count(candidate.components),
        screening=screening,
        test="" if test is None else f"{number(test.score)} (drop {test.drop:+.4f})",
        upper="" if test is None else f"{test.upper:+.4f}",
        verdict=size_verdict(c, i, reason=True),
        reported=", ".join("" if s is None else number(s.score) for s in scores),
        is_chosen=i == c.chosen,
    )


def draw_sizes(certificate: Certificate) -> Any:
    """Draw the curve of `sora auto`: drops by size, bounds, the promise, and what was written."""
    figure = new_figure(*_SIZE, solved=False)
    axes = figure.subplots()
    draw_curve(axes, certificate)
    finish(axes, "", plain(axes.get_xlabel()), plain(axes.get_ylabel()))
    handles, labels = legend_of(axes)
    figure.legend(handles, [plain(label) for label in labels], loc="lower left", fontsize=7.5,
                  frameon=False, labelcolor=INK)  # fmt: skip
    arrange(figure, 1, 1, below=0.17 * len(labels) + 0.1, above=_NO_TITLE)
    return figure
