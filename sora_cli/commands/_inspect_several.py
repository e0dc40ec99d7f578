"""`sora inspect` of several adapters: two are compared by module, more get a line each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import count, emit, emit_table, printable, size
from sora_cli.core.timing import uncollected
from sora_cli.core.words import first_few

if TYPE_CHECKING:
    from sora_cli.adapter.comparing import Comparison, ModuleComparison


def inspect(directories: Sequence[Path], *, as_json: bool) -> None:
    """Show two adapters or more.

    Args:
        directories: adapter directories.
        as_json: print JSON: {"adapters": [...]}, and for two {"comparison": ...} with it.

    Raises:
        SoraError: an adapter that cannot be read, or two of different models.
    """
    comparison = _compare(*directories) if len(directories) == 2 else None
    adapters = [_facts(directory) for directory in directories]
    if as_json:
        data: dict[str, Any] = {"adapters": adapters}
        if comparison is not None:
            data["comparison"] = _data(comparison)
        emit(json.dumps(data, indent=2))
        return
    names = [printable(name) for name in _short([str(directory) for directory in directories])]
    if comparison is not None:
        names = [f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)]
        _emit_comparison(comparison)
    _emit_summary(names, adapters)
    for name, facts in zip(names, adapters, strict=True):
        for note in facts["notes"]:
            emit(f"{name}: {printable(note)}")
    if comparison is not None:
        emit("\n".join(_notes(comparison)))


def _facts(directory: Path) -> dict[str, Any]:
    with uncollected():
        from sora_cli.adapter.facts import facts_of
        from sora_cli.adapter.foreign.opening import open_any

    with open_any(directory, for_show=True) as file:
        return facts_of(file)


def _compare(first: Path, second: Path) -> Comparison:
    with uncollected():
        from sora_cli.adapter.comparing import compare
        from sora_cli.adapter.foreign.opening import open_any

    with open_any(first, for_show=True) as a, open_any(second, for_show=True) as b:
        return compare(a, b)


def _emit_summary(names: Sequence[str], adapters: Sequence[dict[str, Any]]) -> None:
    """Print one row per adapter."""
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
            f"{effective['entropy']:.1f}",
            f"{facts['norm']:.3g}",
            count(facts["parameters"]["adapter"]),
            size(facts["bytes"]),
        ])  # fmt: skip
    columns = ["components", "modules", "90 %", "99 %", "entropy", "||dW||", "parameters", "file"]
    emit_table(None, ["adapter", *columns], rows)


def _short(names: list[str]) -> list[str]:
    """Return the names without the directories they all begin or end with, if some is left."""
    parts = [Path(name).parts for name in names]
    shared = len(Path(os.path.commonpath(names)).parts) if _comparable(names) else 0
    if shared == 1 and Path(names[0]).is_absolute():
        shared = 0  # the root alone
    ends = 0
    while (
        all(len(p) > shared + ends + 1 for p in parts) and len({p[-1 - ends] for p in parts}) == 1
    ):
        ends += 1
    rest = [p[shared : len(p) - ends] for p in parts]
    return [str(Path(*p)) for p in rest] if all(rest) else names


def _comparable(names: list[str]) -> bool:
    return len({Path(name).is_absolute() for name in names}) == 1


def _emit_comparison(comparison: Comparison) -> None:
    """Print a row per module of either adapter."""
    emit_table(
        "two adapters, dW of A against dW of B",
        ["module", "rank A", "rank B", "||A||", "||B||", "cosine", "overlap\nout", "overlap\nin",
         "||A-B||\n/ ||A||"],
        [_row(path, module) for path, module in comparison.modules.items()],
        footer=_row("all", comparison.total),
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


def _notes(comparison: Comparison) -> list[str]:
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


def _data(comparison: Comparison) -> dict[str, Any]:
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
