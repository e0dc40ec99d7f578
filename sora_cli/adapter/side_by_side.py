"""Tables and JSON of several adapters: a line for each, or two compared module by module."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import count, size
from sora_cli.core.table import Column, Table
from sora_cli.core.words import first_few

if TYPE_CHECKING:
    from sora_cli.adapter.comparing import Comparison, ModuleComparison


def summary_table(names: Sequence[str], adapters: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one row per adapter.

    Args:
        adapters: the facts of each; see `facts_of`.
    """
    rows = []
    for name, facts in zip(names, adapters, strict=True):
        components, modules = facts["components"], facts["modules"]
        effective = facts["effective_rank"]
        rows.append([
            name,
            f"{components['live']}/{components['start']}",
            f"{modules['all'] - modules['dead']}/{modules['all']}",
            effective["energy_90"],
            effective["energy_99"],
            effective["entropy"],
            facts["norm"],
            facts["parameters"]["adapter"],
            facts["bytes"],
        ])  # fmt: skip
    columns = (
        "adapter", "components", "modules", "90 %", "99 %", Column("entropy", ".1f"),
        Column("||dW||", ".3g"), Column("parameters", count), Column("file", size),
    )  # fmt: skip
    return Table(None, columns, rows)


def short_names(names: list[str]) -> list[str]:
    """Return the names without the directories that all begin or end with, if anything is left."""
    parts = [Path(name).parts for name in names]
    comparable = len({Path(name).is_absolute() for name in names}) == 1
    shared = len(Path(os.path.commonpath(names)).parts) if comparable else 0
    if shared == 1 and Path(names[0]).is_absolute():
        shared = 0  # the root alone
    ends = 0
    while (
        all(len(p) > shared + ends + 1 for p in parts) and len({p[-1 - ends] for p in parts}) == 1
    ):
        ends += 1
    rest = [p[shared : len(p) - ends] for p in parts]
    return [str(Path(*p)) for p in rest] if all(rest) else names


def comparison_table(comparison: Comparison) -> Table:
    """Return a table with a row for each module of either adapter."""
    columns = (
        "module", "rank A", "rank B", Column("||A||", ".3g"), Column("||B||", ".3g"),
        Column("cosine", ".3f", "-"), Column("overlap\nout", ".2f", "-"),
        Column("overlap\nin", ".2f", "-"), Column("||A-B||\n/ ||A||", ".3g", "-"),
    )  # fmt: skip
    return Table(
        "two adapters, dW of A against dW of B",
        columns,
        [_comparison_row(path, module) for path, module in comparison.modules.items()],
        footer=_comparison_row("all", comparison.total),
    )


def _comparison_row(name: str, m: ModuleComparison) -> list[Any]:
    overlap = (None, None) if m.overlap is None else (m.overlap.left, m.overlap.right)
    return [name, *m.ranks, *m.norms, m.cosine, *overlap, m.relative]


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return the remarks below the table."""
    notes = []
    for letter, only in zip("AB", comparison.only, strict=True):
        if only:
            notes.append(f"only in {letter}: {len(only)} modules ({first_few(only)})")
    overlap = comparison.total.overlap
    if overlap is not None:
        notes.append(
            "overlap of the output and input subspaces: 1 means that the smaller one lies within "
            f"the other; random subspaces overlap by {overlap.chance_left:.2f} and "
            f"{overlap.chance_right:.2f} on average"
        )
    return notes


def comparison_facts(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison for JSON."""
    return {
        "modules": {path: _module_facts(module) for path, module in comparison.modules.items()},
        "only": [list(only) for only in comparison.only],
        "total": _module_facts(comparison.total),
    }


def _module_facts(m: ModuleComparison) -> dict[str, Any]:
    return {
        "ranks": list(m.ranks),
        "norms": list(m.norms),
        "cosine": m.cosine,
        "distance": m.distance,
        "relative_distance": m.relative,
        "overlap": None if m.overlap is None else asdict(m.overlap),
    }
