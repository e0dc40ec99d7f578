"""The table of several adapters: a line for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.core.console import count, size
from sora_cli.core.table import Column, Table

if TYPE_CHECKING:
    from sora_cli.adapter.facts import Facts


def summary_table(names: Sequence[str], adapters: Sequence[Facts]) -> Table:
    """Return a table with one row per adapter.

    Args:
        adapters: the facts of each; see `facts_of`.
    """
    rows = []
    for name, facts in zip(names, adapters, strict=True):
        components, modules = facts.components, facts.modules
        effective = facts.effective_rank
        rows.append([
            name,
            f"{components.live}/{components.start}",
            f"{modules.all - modules.dead}/{modules.all}",
            effective.energy_90,
            effective.energy_99,
            effective.entropy,
            facts.norm,
            facts.parameters.adapter,
            facts.bytes,
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
