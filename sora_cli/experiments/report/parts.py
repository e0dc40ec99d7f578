"""The sections of a run's page; each has its content and lines about missing content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sora_cli.adapter.modules import Module
from sora_cli.adapter.places import ADAPTER
from sora_cli.adapter.plot import summary
from sora_cli.adapter.ranks import Rank, RankMap, rank_map
from sora_cli.adapter.singular_values import components_for, read_modules
from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote
from sora_cli.core.table import Table
from sora_cli.experiments.report import curves
from sora_cli.experiments.report.examples import FILE_NAME, Examples, Record, choose, disagreement
from sora_cli.experiments.report.heat import MapCell, RankTable, heat_table
from sora_cli.experiments.report.html import picture
from sora_cli.experiments.report.spectra import cut_commands, cut_table, draw_modules, draw_pooled
from sora_cli.model.files import ADAPTER_CONFIG
from sora_cli.report import HISTORY_FILE, RunReport

ENERGY = 0.99
"""If all ranks are equal, the page counts the components that hold this share of ||dW||^2."""


@dataclass(frozen=True)
class PicturesPart:
    """Pictures, and lines about missing pictures."""

    pictures: tuple[Any, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class RanksPart:
    """Heat maps with their names, and lines about missing information."""

    maps: tuple[tuple[str, RankTable], ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class SpectraPart:
    """Pictures of the spectra, possible cuts with commands; or a line about missing spectra."""

    pictures: tuple[Any, ...] = ()
    cuts: Table | None = None
    commands: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitPart:
    """Examples of a split; `doubt` is a reason why they may not belong to this run, or ""."""

    name: str
    summary_line: str
    doubt: str
    kinds: tuple[Examples, ...]


@dataclass(frozen=True)
class ExamplesPart:
    """Examples by split, and lines about missing examples."""

    splits: tuple[SplitPart, ...]
    missing: tuple[str, ...]


def curves_part(report: RunReport) -> PicturesPart:
    """Return the section with the learning curves of a run."""
    known = curves.Curves.of(report)
    drawn = {
        "loss": curves.draw_loss(known),
        "metric": curves.draw_metric(known, report.main_metric or "metric", report.best_step),
        "alive": curves.draw_alive(known),
    }
    pictures = (picture(figure, name) for name, figure in drawn.items() if figure is not None)
    return PicturesPart(tuple(pictures), tuple(_missing_curves(report, known)))


def _missing_curves(report: RunReport, known: curves.Curves) -> Iterator[str]:
    if report.steps == 0:
        yield "The run took no step, so there is nothing to draw."
        return
    if not report.history:
        yield (
            f"There is no {HISTORY_FILE} of this run, which holds its losses and scores by step."
        )
        return
    if not known.metric:
        name = report.main_metric or "The metric"
        yield f"{name} was not measured during training: training.evaluate=epoch does that."
    if report.live_components and not known.alive:
        yield f"All {report.live_components[-1]:,} components were alive after every step."


def ranks_part(report: RunReport, ranks: RankMap, modules: Mapping[str, Module]) -> RanksPart:
    """Return the section with the rank map; with equal ranks, also the map of `needed_part`.

    Args:
        ranks: components at the end and at the start.
        modules: of the adapter; empty if it cannot be read.
    """
    if not report.ranks:
        return RanksPart((), (_no_ranks(report),))
    maps, lines = [("components alive", rank_part(ranks))], []
    # a method of fixed rank has a map of one colour: how much of each rank is used says more
    if len({cell.live for cell in ranks.cells.values()}) <= 1:
        rank = next(iter(ranks.cells.values())).live
        lines.append(f"Every module has rank {rank}, so the ranks alone show nothing.")
        if modules and rank:
            maps.append(("components that hold 99 % of ||dW||²", needed_part(ranks, modules)))
    return RanksPart(tuple(maps), tuple(lines))


def rank_part(ranks: RankMap) -> RankTable:
    """Return the map of live components, with totals such as "17/24" in a last row and column."""
    largest = max((cell.start for cell in ranks.cells.values()), default=1)
    table = heat_table(ranks, largest, summary(ranks))
    rows = [
        (name, (*cells, _total(ranks.row_total(row))))
        for (name, cells), row in zip(table.rows, ranks.rows, strict=True)
    ]
    totals = [*map(ranks.column_total, ranks.columns), ranks.total]
    rows.append(("all", tuple(map(_total, totals))))
    return replace(table, columns=(*table.columns, "all"), rows=tuple(rows))


def needed_part(ranks: RankMap, modules: Mapping[str, Module]) -> RankTable:
    """Return the map of the smallest number of components that hold 99 % of a module's ||dW||^2."""
    needed = rank_map({path: components_for(m.values, ENERGY) for path, m in modules.items()})
    largest = max((cell.start for cell in ranks.cells.values()), default=1)
    shape = replace(ranks, cells=needed.cells)
    return heat_table(shape, largest, f"{needed.total.live} of {ranks.total.live} in all")


def _total(rank: Rank) -> MapCell:
    return MapCell(str(rank), None)


def _no_ranks(report: RunReport) -> str:
    if report.status != "completed" and not report.parameters.base:
        return "The run ended before its adapter was created."
    method = report.recipe.get("method", {}).get("name", "the method")
    return f"{method} has no low-rank modules, so there are no ranks and no spectra."


def modules_of(report: RunReport, run: Path) -> tuple[dict[str, Module], str]:
    """Return the modules of the run's adapter in the report's order, or a line with the error."""
    folder = run / ADAPTER
    if not (folder / ADAPTER_CONFIG).is_file():
        return {}, f"There is no adapter in {folder}."
    try:
        modules = read_modules(folder)
    except SoraError as error:
        return {}, f"The adapter cannot be read: {error.what}."
    order = dict.fromkeys([*(path for path in report.ranks if path in modules), *modules])
    return {path: modules[path] for path in order}, ""


def spectra_part(modules: Mapping[str, Module], why_not: str, run: Path) -> SpectraPart:
    """Return the section with the spectra of a run's adapter and its possible cuts."""
    alone, together = (draw_modules(modules), draw_pooled(modules)) if modules else (None, None)
    if alone is None or together is None:
        return SpectraPart(missing=(why_not or "Every component of the adapter is zero.",))
    pictures = picture(alone, "modules"), picture(together, "pooled")
    return SpectraPart(pictures, cut_table(modules), tuple(cut_commands(modules, run)))


def examples_part(
    report: RunReport, run: Path, records: Sequence[Record], most: int
) -> ExamplesPart:
    """Return the section with right and wrong examples by split.

    Args:
        records: of all splits; empty if no predictions are stored.
        most: largest number of examples of each kind.
    """
    if not records:
        line = (
            f"No predictions are stored ({FILE_NAME} in the run's directory). To score the rows "
            f"again and show some: sora report {quote(str(run))} --examples 10"
        )
        return ExamplesPart((), (line,))
    by_split: dict[str, list[Record]] = {}
    for record in records:
        by_split.setdefault(record["split"], []).append(record)
    splits = []
    for split, rows in by_split.items():
        summary_line, kinds = choose(rows, most)
        doubt = disagreement(report, split, rows)
        splits.append(SplitPart(split, summary_line, doubt or "", tuple(kinds)))
    has_texts = any("input" in r or "source" in r or "question" in r or "tokens" in r
                    or "image" in r for r in records)  # fmt: skip
    lines = () if has_texts else ("The predictions file has no texts of the rows.",)
    return ExamplesPart(tuple(splits), lines)
