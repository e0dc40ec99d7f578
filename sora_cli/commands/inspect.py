"""`sora inspect`: where an adapter's ranks are, and what else is in its directory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sora_cli.console import count, emit, emit_table, say, size
from sora_cli.ranks import Rank, RankMap, rank_map


def inspect(directory: Path, *, as_json: bool, plot: Path | None) -> None:
    """Show an adapter from its files alone.

    Args:
        directory: an adapter directory, ours or any PEFT LoRA's, or a run directory.
        as_json: print one JSON object instead of the table.
        plot: also draw the heat map to this file.

    Raises:
        SoraError: no adapter, or one that can not be read.
    """
    from sora_cli.adapter import locate_adapter, read_adapter

    directory = locate_adapter(directory)
    adapter = read_adapter(directory)
    ranks, start = adapter.ranks(), adapter.ranks_start()
    facts = _facts(directory, adapter)
    if as_json:
        emit(json.dumps(facts, indent=2))
    else:
        _emit_rank_table(rank_map(ranks, start), str(directory))
        emit("\n".join(f"{name + ':':<12} {value}" for name, value in _lines(facts)))
    if plot is not None:
        from sora_cli.plots import plot_ranks

        plot_ranks(ranks, start, plot, f"{facts['method'] or 'LoRA'}: {directory}")
        say(f"wrote {plot}")


def _facts(directory: Path, adapter: Any) -> dict[str, Any]:
    """Everything that is shown, as plain data."""
    from sora_cli.peft_layout import WEIGHTS_FILE

    ranks, start, meta = adapter.ranks(), adapter.ranks_start(), adapter.meta
    stored = {path: factors.rank for path, factors in adapter.layers.items()}
    return {
        "directory": str(directory),
        "method": meta.method,
        "method_config": meta.method_config,
        "task_type": adapter.task_type,
        "task": meta.task,
        "labels": list(meta.labels) if meta.labels else None,
        "num_labels": meta.num_labels,
        "problem_type": meta.problem_type,
        "max_length": meta.max_length,
        "base": asdict(adapter.base),
        "components": {"live": sum(ranks.values()), "start": sum(start.values())},
        "modules": {"all": len(ranks), "dead": sum(rank == 0 for rank in ranks.values())},
        "largest_rank": max(stored.values()),
        "parameters": {"adapter": adapter.parameters, "head": adapter.head_parameters},
        "bytes": (directory / WEIGHTS_FILE).stat().st_size,
        "head_modules": list(adapter.head_modules),
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "lineage": list(meta.lineage),
        "sora_version": meta.sora_version,
        "ranks": {
            path: {"live": rank, "stored": stored.get(path, 0), "start": start[path]}
            for path, rank in ranks.items()
        },
    }


def _emit_rank_table(table: RankMap, title: str) -> None:
    """Layers x kinds of modules, with totals as live/start."""
    columns = [label.replace(".", "\n.") for label in table.column_labels()]
    rows = [
        [label, *(_cell(table, row, column) for column in table.columns), _of(table.row_total(row))]
        for label, row in zip(table.row_labels(), table.rows, strict=True)
    ]
    totals = [_of(table.column_total(column)) for column in table.columns]
    emit_table(title, ["layer", *columns, "all"], rows, footer=["all", *totals, _of(table.total)])


def _cell(table: RankMap, row: str, column: str) -> str:
    cell = table.cells.get((row, column))
    return "" if cell is None else str(cell.live)


def _of(rank: Rank) -> str:
    """ "17/24", or just "24" where nothing was taken out."""
    return str(rank.live) if rank.live == rank.start else f"{rank.live}/{rank.start}"


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each line below the table."""
    components, modules = facts["components"], facts["modules"]
    base = facts["base"]
    kept = f"{count(components['live'])} of {count(components['start'])}"
    if components["start"]:
        kept += f" ({components['live'] / components['start']:.0%})"
    lines = [
        ("method", facts["method"] or "LoRA, written by another tool"),
        ("base", (base["path"] or "not recorded") + _revision(base)),
        ("components", kept),
        ("modules", f"{modules['all'] - modules['dead']} of {modules['all']} alive"),
        ("parameters", f"{count(facts['parameters']['adapter'])} in the adapter"),
        ("file", size(facts["bytes"])),
    ]
    if facts["head_modules"]:
        head = (
            f"{', '.join(facts['head_modules'])}: {count(facts['parameters']['head'])} parameters"
        )
        lines.append(("head", head))
    task = facts["task"] or facts["task_type"]
    if task:
        labels = f" ({', '.join(facts['labels'])})" if facts["labels"] else ""
        lines.append(("task", f"{task}{labels}"))
    lines += [("then", _step(entry)) for entry in facts["lineage"]]
    return lines


def _revision(base: dict[str, Any]) -> str:
    return f" @ {base['revision']}" if base["revision"] else ""


def _step(entry: dict[str, Any]) -> str:
    """One entry of the lineage: the command, then its values."""
    values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items()
              if k != "command" and v is not None)  # fmt: skip
    return f"{entry.get('command', '?')}: {', '.join(values)}".removesuffix(": ")
