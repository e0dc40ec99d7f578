"""Adapters side by side: a line for each, and two compared by module, as tables and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import count, size
from sora_cli.core.words import first_few

if TYPE_CHECKING:
    from sora_cli.adapter.comparing import Comparison, ModuleComparison


def summary_table(
    names: Sequence[str], adapters: Sequence[dict[str, Any]]
) -> tuple[None, list[str], list[list[object]]]:
    """Return title, columns and rows of a table with one row per adapter.

    Args:
        adapters: the facts of each; see `facts_of`.
    """
    rows: list[list[object]] = []
    for name, facts in zip(names, adapters, strict=True):
        components, modules = facts["components"], facts["modules"]
        effective = facts["effective_rank"]
        rows.append([
            name,
            f"{components['live']}/{components['start']}",
            f"{modules['all'] - modules['dead']}/{modules['all']}",
            effective["energy_90"],
            effective["energy_99"],
            f"{effective['entropy']:.1f}",
            f"{facts['norm']:.3g}",
            count(facts["parameters"]["adapter"]),
            size(facts["bytes"]),
        ])  # fmt: skip
    columns = ["components", "modules", "90 %", "99 %", "entropy", "||dW||", "parameters", "file"]
    return None, ["adapter", *columns], rows


def short_names(names: list[str]) -> list[str]:
    """Return the names without the directories they all begin or end with, if some is left."""
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


def comparison_table(
    comparison: Comparison,
) -> tuple[str, list[str], list[list[object]], list[object]]:
    """Return title, columns, rows and footer of a table with a row per module of either adapter."""
    return (
        "two adapters, dW of A against dW of B",
        ["module", "rank A", "rank B", "||A||", "||B||", "cosine", "overlap\nout", "overlap\nin",
         "||A-B||\n/ ||A||"],
        [_row(path, module) for path, module in comparison.modules.items()],
        _row("all", comparison.total),
    )  # fmt: skip


def _row(name: str, m: ModuleComparison) -> list[object]:
    overlap = (
        ["-", "-"] if m.overlap is None else [f"{m.overlap.left:.2f}", f"{m.overlap.right:.2f}"]
    )
    return [
        name,
        *m.ranks,
        *(f"{norm:.3g}" for norm in m.norms),
        "-" if m.cosine is None else f"{m.cosine:.3f}",
        *overlap,
        "-" if m.relative is None else f"{m.relative:.3g}",
    ]


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return the remarks below the table."""
    notes = []
    for letter, only in zip("AB", comparison.only, strict=True):
        if only:
            notes.append(f"only in {letter}: {len(only)} modules ({first_few(only)})")
    overlap = comparison.total.overlap
    if overlap is not None:
        notes.append(
            "overlap of the output and input directions: 1 means that those of the smaller rank "
            f"lie within the other's; by chance it would be {overlap.chance_left:.2f} and "
            f"{overlap.chance_right:.2f} on average"
        )
    return notes


def comparison_facts(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison for JSON."""
    return {
        "modules": {path: _module(module) for path, module in comparison.modules.items()},
        "only": [list(only) for only in comparison.only],
        "total": _module(comparison.total),
    }


def _module(m: ModuleComparison) -> dict[str, Any]:
    return {
        "ranks": list(m.ranks),
        "norms": list(m.norms),
        "cosine": m.cosine,
        "distance": m.distance,
        "relative_distance": m.relative,
        "overlap": None if m.overlap is None else asdict(m.overlap),
    }
