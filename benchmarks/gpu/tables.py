"""The measured figures as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.measured import Measured
from benchmarks.gpu.sides import FLOOR, OURS, PEFT
from benchmarks.measure import markdown, median, ratios, shown_ratio

_STEPS = ("row", "ms", "/ floor", "/ PEFT LoRA", "tokens/s", "peak GB", "/ PEFT's", "gradients")
_LAUNCHES = ("row", "side", "launches", "CPU in them, ms", "GPU busy, ms", "step, ms", "busy")
_NO_MEMORY = "out of memory"


def step_table(rows: Sequence[Measured]) -> str:
    """Return a table of times, memory and checks, one line for each row."""
    return markdown(_STEPS, [_step_line(row) for row in rows])


def launch_table(rows: Sequence[Measured]) -> str:
    """Return a table of each side's kernel launches in a step; on a CPU a remark."""
    lines = []
    for row in rows:
        for side, launches in row.launches.items():
            whole = 1e3 * median(row.seconds[side])
            times = (f"{ms:.1f}" for ms in (launches.calls_ms, launches.busy_ms, whole))
            busy = f"{launches.busy_ms / whole:.0%}"
            lines.append([row.row.title, side, str(launches.calls), *times, busy])
    return markdown(_LAUNCHES, lines) if lines else "Kernel launches: none on a CPU."


def _step_line(row: Measured) -> list[str]:
    mine = row.seconds.get(OURS)
    if mine is None:
        return [row.row.title, _NO_MEMORY, *[""] * (len(_STEPS) - 2)]
    peak, other = row.peaks[OURS], row.peaks.get(PEFT)
    return [
        row.row.title,
        f"{1e3 * median(mine):.1f}",
        _against(row, FLOOR),
        _against(row, PEFT),
        f"{row.tokens / median(mine):,.0f}",
        f"{peak / 1e9:.3g}",
        _NO_MEMORY if other is None else f"{peak / other:.2f}",
        "not checked: out of memory" if row.verdict is None else str(row.verdict),
    ]


def _against(row: Measured, side: str) -> str:
    other = row.seconds.get(side)
    return _NO_MEMORY if other is None else shown_ratio(ratios(row.seconds[OURS], other))
