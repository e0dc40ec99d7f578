"""Components kept by kind of module, and the agreement of seeds and tasks on their places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import StatisticsError, correlation, mean

from sora_cli.adapter.ranks import shortest_names
from sora_cli.core.table import Column, Table, emit_table
from sora_cli.experiments.compare.cells import NONE
from sora_cli.experiments.compare.runs import Group, Run

Pair = tuple[Run, Run]


@dataclass(frozen=True)
class Agreement:
    """Mean Pearson correlation of the live components per module, over pairs of runs.

    Attributes:
        seeds: mean over pairs of seeds of the same task; None without a pair.
        tasks: mean over pairs of tasks with the same seed; None without a pair.
        seed_pairs, task_pairs: number of pairs in each mean.
    """

    label: str
    seeds: float | None
    seed_pairs: int
    tasks: float | None
    task_pairs: int


def rank_agreement(groups: Sequence[Group]) -> list[Agreement]:
    """Return the agreement for each label with runs that changed their ranks."""
    agreements = []
    for label in dict.fromkeys(group.label for group in groups):
        changed = [group for group in groups if group.label == label and _changed(group)]
        if not changed:
            continue
        seeds = _correlations(pair for group in changed for pair in combinations(group.runs, 2))
        runs = [run for group in changed for run in group.runs]
        tasks = _correlations(
            (a, b) for a, b in combinations(runs, 2) if a.task != b.task and a.seed == b.seed
        )
        agreements.append(Agreement(label, _mean(seeds), len(seeds), _mean(tasks), len(tasks)))
    return agreements


def emit_ranks(groups: Sequence[Group]) -> None:
    """Print the share of components kept by kind of module, and the agreement."""
    changed = [group for group in groups if _changed(group)]
    kinds = list(dict.fromkeys(kind for g in changed for kind in g.first.ranks.columns))
    emit_table(Table(
        "components kept by kind of module, mean over seeds and layers",
        ["group", *(Column(name, ".0%", NONE) for name in shortest_names(kinds))],
        [[f"{g.task}: {g.label}", *(_mean_share(g, kind) for kind in kinds)] for g in changed],
    ))  # fmt: skip
    seeds, tasks = (Column(f"two {these}", "+.2f", NONE)
                    for these in ("seeds, one task", "tasks, one seed"))  # fmt: skip
    emit_table(Table(
        "agreement of ranks: correlation of components per module, mean over pairs of runs",
        ["method", seeds, "pairs", tasks, "pairs"],
        [(a.label, a.seeds, a.seed_pairs, a.tasks, a.task_pairs) for a in rank_agreement(groups)],
    ))  # fmt: skip


def _changed(group: Group) -> bool:
    return any(m.start != m.live for run in group.runs for m in run.ranks.cells.values())


def _mean_share(group: Group, kind: str) -> float | None:
    totals = [run.ranks.column_total(kind) for run in group.runs]
    shares = [total.live / total.start for total in totals if total.start]
    return _mean(shares)


def _correlations(pairs: Iterable[Pair]) -> list[float]:
    """Return the correlation of each pair of runs, over their common modules."""
    correlations = []
    for a, b in pairs:
        modules = a.report.ranks.keys() & b.report.ranks.keys()
        ends = [(a.report.ranks[m].end, b.report.ranks[m].end) for m in sorted(modules)]
        try:
            correlations.append(correlation(*zip(*ends, strict=True)))
        # undefined without common modules (TypeError), for one module, or if all ranks are equal
        except (StatisticsError, TypeError):
            continue
    return correlations


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
