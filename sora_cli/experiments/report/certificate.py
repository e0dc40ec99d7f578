"""The certificate of `sora auto` on a page: promise, tested sizes and their curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sora_cli.core.console import count
from sora_cli.core.figures import INK, arrange, finish, new_figure, plain
from sora_cli.core.table import Column, Table
from sora_cli.experiments.auto.plot import draw_curve, legend_of
from sora_cli.experiments.report.facts import number
from sora_cli.search.evidence import Evidence
from sora_cli.search.words import size_verdict

_SIZE = 5.0, 4.2
"""Width and height of the curve, inches."""
_NO_TITLE = -0.25  # inches: take back the margin above that `arrange` leaves for a title


@dataclass(frozen=True)
class CertificatePart:
    """The certificate's section of a page; `chosen` is the table's row of the written size."""

    is_certified: bool
    statement: str
    lines: tuple[str, ...]
    table: Table
    chosen: Sequence[object] | None


def certificate_part(certificate: Evidence) -> CertificatePart:
    """Return the certificate's section; sizes are from largest to smallest."""
    c = certificate
    table = _table(c)
    return CertificatePart(
        is_certified=c.certified,
        statement=c.statement,
        lines=tuple(_lines(c)),
        table=table,
        chosen=table.rows[0 if c.chosen is None else 1 + c.chosen],  # the reference stands first
    )


def _lines(c: Evidence) -> list[str]:
    promise, bound, nouns = c.promise, c.bound, c.nouns
    level = "holds at any number of rows" if bound.exact else "is approximate"
    promised = (
        f"at most {promise.given} of the {nouns.things} {nouns.differ} from {c.full.name}'s"
        if promise.kind == "differ"
        else f"{promise.metric} at most {promise.given} worse{nouns.end}"
    )
    if nouns.because:
        promised += ", by the share of answers that differ"
    lines = [
        f"promise: {promised}, {promise.confidence:.0%} confidence",
        f"bound: {bound.method}; its confidence {level}",
    ]
    # of a promise about answers this figure assumes the share that the test is about
    if bound.smallest_drop is not None and promise.kind == "drop":
        least = f"{bound.smallest_drop:.2%}" if nouns.counts else f"{bound.smallest_drop:.4g}"
        lines.append(
            f"the smallest {'share' if nouns.counts else 'loss'} that these test rows can be "
            f"expected to certify: {least}"
        )
    rows = ", ".join(f"{n} {count(part.rows)} (of {part.split})" for n, part in c.rows.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in c.seeds.items())
    return [*lines, f"rows: {rows}", f"seeds: {seeds}", f"kept: {c.saved}", f"it is for {c.scope}"]


def _table(c: Evidence) -> Table:
    """Return a table of full rank and the trained sizes."""
    reported = tuple(c.full.reported)
    # the reported splits have the recipe's metric, whatever is compared
    nouns, own = c.nouns, c.statistic.metric
    name, form, of = nouns.column, nouns.form, f"{own}, " if own else ""
    bound = "at most" if nouns.counts else f"bound of the {name}"
    columns: tuple[Any, ...] = (
        Column("parameters", count), Column("of full", ".0%"), Column("components", count),
        Column(f"{of}screening, unhealed", number), f"{of}test rows", Column(bound, form),
        ", ".join(f"{c.promise.metric}, {split}" if of else split for split in reported), "verdict",
    )  # fmt: skip
    scores = ", ".join(number(c.full.reported[split]) for split in reported)
    full = [c.full.parameters, 1, c.full.components, None, number(c.full.test), None]
    rows: list[list[Any]] = [[*full, scores, c.full.name]]
    for i, size in enumerate(c.candidates):
        screened = (s for s in c.screened if s.max_params == size.max_params)
        results = (size.reported.get(split) for split in reported)
        test = size.test
        rows.append([
            size.parameters,
            size.parameters / max(c.full.parameters, 1),
            size.components,
            next((s.screening.score for s in screened), None),
            None if test is None else f"{number(test.score)} ({name} {test.drop:{form}})",
            None if test is None else test.upper,
            ", ".join("" if s is None else number(s.score) for s in results),
            size_verdict(c, i, reason=True),
        ])  # fmt: skip
    if not c.screened:  # cut alone, or healed one by one
        columns, rows = columns[:3] + columns[4:], [row[:3] + row[4:] for row in rows]
    return Table(None, columns, rows)


def draw_sizes(certificate: Evidence) -> Any:
    """Draw the curve of `sora auto`: drops and bounds by size, the promise, the written size."""
    figure = new_figure(*_SIZE, solved=False)
    axes = figure.subplots()
    draw_curve(axes, certificate)
    finish(axes, "", plain(axes.get_xlabel()), plain(axes.get_ylabel()))
    handles, labels = legend_of(axes)
    figure.legend(handles, [plain(label) for label in labels], loc="lower left", fontsize=7.5,
                  frameon=False, labelcolor=INK)  # fmt: skip
    # 0.17 inches hold a line of the legend at 7.5 points
    arrange(figure, 1, 1, below=0.17 * len(labels) + 0.1, above=_NO_TITLE)
    return figure
