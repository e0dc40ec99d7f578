"""`curve.png`: the drop of each size, with the bounds of the tests and the written size marked."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora_cli.core.figures import COLOURS, FAINT, INK, QUIET, new_figure, save_figure
from sora_cli.search.evidence import Candidate, Evidence, Measured
from sora_cli.search.row_set import part_of

_WIDTH, _HEIGHT, _LINE = 7.2, 4.1, 0.17  # inches; the height without the legend, and of its lines
_TESTED, _FAILED, _PROMISE = COLOURS[:3]
_TICKS = (100, 50, 20, 10, 5, 2, 1)


def plot_curve(certificate: Evidence, path: Path) -> None:
    """Draw the curve with a title and a legend, and save the picture."""
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    draw_curve(axes, certificate)
    handles, labels = legend_of(axes)
    figure.set_figheight(_HEIGHT + _LINE * len(labels))
    # one column: the longest label takes more than half of the width
    figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False)
    title = f"{certificate.status}: {certificate.saved}"
    figure.suptitle(
        "\n".join(textwrap.wrap(title, int(_WIDTH * 12))), x=0.01, ha="left", fontsize=10
    )
    save_figure(figure, path)


def draw_curve(axes: Any, certificate: Evidence) -> None:
    """Draw the drop against full rank by size, on a logarithmic axis.

    Grey: unhealed cuts on the screening rows. Colour: trained sizes on the test rows, each with a
    line up to its bound; a size passes if its bound is below the green line. Hollow squares: the
    written adapter on the reported rows, unless answers alone are tested: those rows have a score,
    and no share of answers that differ.
    """
    whole = certificate.full.parameters
    shares = [100 * size.parameters / whole for size in certificate.screened]
    if certificate.screened:
        drops = [size.screening.drop for size in certificate.screened]
        label = f"cut, not healed ({_rows(certificate, 'screening')} screening rows)"
        axes.plot(shares, drops, color=QUIET, marker=".", linewidth=1.0, label=label)
    for index, size in enumerate(certificate.candidates):
        _draw_candidate(axes, certificate, index, size)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.axhline(
        certificate.promise.max_drop, color=_PROMISE, linewidth=1.4, linestyle=(0, (5, 2)),
        label=f"promise: {certificate.promise.given}",
    )  # fmt: skip
    axes.set_ylim(*_heights(certificate))
    axes.set_xscale("log")
    least = min([*shares, *(100 * size.parameters / whole for size in certificate.candidates)])
    axes.set_xlim(110, least * 0.85)
    ticks = [tick for tick in _TICKS if tick >= least * 0.85]
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"adapter parameters, % of the {whole:,} at full rank", fontsize=9)
    nouns = certificate.nouns
    if nouns.form.endswith("%"):
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_ylabel(nouns.axis, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", linewidth=0.4, color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _heights(certificate: Evidence) -> tuple[float, float]:
    """Return the limits of the vertical axis; much larger drops are cut off."""
    tests = [size.test for size in certificate.candidates if size.test is not None]
    seen = [
        m.drop for size in certificate.candidates for m in _reported(certificate, size).values()
    ]
    seen += [value for test in tests for value in (test.drop, test.upper)]
    known = [value for value in seen if math.isfinite(value)]
    reach = max([certificate.promise.max_drop, *known, 1e-6])
    low = min([0.0, *known, *(size.screening.drop for size in certificate.screened)])
    return max(low, -2 * reach) - 0.2 * reach, 2.2 * reach


def _draw_candidate(axes: Any, certificate: Evidence, index: int, size: Candidate) -> None:
    whole = certificate.full.parameters
    x = 100 * size.parameters / whole
    test, chosen = size.test, index == certificate.chosen
    if test is not None:
        colour = _TESTED if test.kept else _FAILED
        if math.isfinite(test.upper):
            axes.plot([x, x], [test.drop, test.upper], color=colour, linewidth=2.2)
            axes.plot([x], [test.upper], color=colour, marker="_", markersize=11, markeredgewidth=2)
        axes.plot(
            [x], [test.drop], color=colour, marker="o", markersize=6, linestyle="none",
            label=f"trained, {test.verdict}, with its {certificate.promise.confidence:.0%} bound "
            f"({_rows(certificate, 'test')} test rows)",
        )  # fmt: skip
    if not chosen:
        return
    for split, measured in _reported(certificate, size).items():
        axes.plot(
            [x], [measured.drop], color=INK, marker="s", markersize=7, fillstyle="none",
            linestyle="none",
            label=f"written, on {split} ({_rows(certificate, part_of(split))} rows)",
        )  # fmt: skip
    axes.axvline(x, color=_TESTED, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
        "written", (x, 1), xycoords=("data", "axes fraction"), xytext=(3, -9),
        textcoords="offset points", fontsize=8, color=_TESTED,
    )  # fmt: skip


def _reported(certificate: Evidence, size: Candidate) -> Mapping[str, Measured]:
    """Return a size's scores on the reported splits that have the unit of the vertical axis."""
    return {} if certificate.nouns.counts else size.reported


def _rows(certificate: Evidence, part: str) -> str:
    rows = certificate.rows.get(part)
    return "?" if rows is None else f"{rows.rows:,}"


def legend_of(axes: Any) -> tuple[list[Any], list[str]]:
    """Return the handles and labels for a legend, each label once."""
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    return list(by_label.values()), list(by_label)
