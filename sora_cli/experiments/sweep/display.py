"""A sweep's progress on stderr: a live table on a terminal, otherwise lines at starts and ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from sora_cli.core.console import duration, printable, say
from sora_cli.core.progress import on_terminal
from sora_cli.core.verbosity import quiet
from sora_cli.experiments.sweep.engine import last_output
from sora_cli.experiments.sweep.record import OVER, RunRecord

if TYPE_CHECKING:
    from rich.console import Group

_BAR = re.compile(r"training: +\d+%[^\r\n]*?(\d+)/(\d+) ")  # with or without a drawn bar
_REFRESH = 1.0
_TAIL = 2000
_LINES = 12
"""Largest number of running runs in the table."""


@final
class Display:
    """The progress display of a sweep.

    Args:
        records: records of the runs by name; the display reads their current state.
        log_of: gives the log file of a run.
        total: number of runs; None means the number of records.
    """

    def __init__(
        self,
        records: Mapping[str, RunRecord],
        log_of: Callable[[str], Path],
        *,
        total: int | None = None,
    ) -> None:
        self._records, self._log_of, self._total = records, log_of, total
        self._began = self._drawn = time.monotonic()
        self._starts: dict[str, float] = {}
        self._live: Any = None

    def __enter__(self) -> Display:
        self._context().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.__exit__(*error)

    def tell(self, record: RunRecord) -> None:
        """Print a line about the start or the end of a run."""
        if record.state == "running":
            self._starts[record.name] = time.monotonic()
            again = f" (start {record.attempts})" if record.attempts > 1 else ""
            if self._live is None:
                say(f"{self._count()}  {record.name}: started{again}")
            return
        spent = "" if record.seconds is None else f" in {duration(record.seconds)}"
        begin = f"{self._count()}  {record.name}: "
        if record.state == "waiting":
            after = f"after {spent.removeprefix(' in ')}"
            lines = [
                f"{begin}was killed {after}; starting it again"
                if record.error is None
                else f"{begin}{record.error} {after}; it goes on where there is room"
            ]
        elif record.error:
            lines = [f"{begin}{record.state}{spent}: {record.error}",
                     f"         see {self._log_of(record.name)}"]  # fmt: skip
        else:
            lines = [f"{begin}{record.state}{spent}"]
        for line in lines:
            if self._live is None:
                say(line)
            else:
                self._live.console.print(printable(line), highlight=False, markup=False)

    def show(self) -> None:
        """Redraw the table, at most once per second."""
        if self._live is not None and time.monotonic() - self._drawn >= _REFRESH:
            self._drawn = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _context(self) -> AbstractContextManager[Any]:
        if quiet() or not on_terminal():
            return nullcontext()
        from rich.console import Console
        from rich.live import Live

        live = Live(
            self._table(), console=Console(stderr=True), auto_refresh=False, transient=False
        )
        self._live = live
        return live

    def _count(self) -> str:
        over = sum(record.state in OVER for record in self._records.values())
        total = len(self._records) if self._total is None else self._total
        return f"[{over:>{len(str(total))}}/{total}]"

    def _table(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in ("run", "time", "steps", ""):
            table.add_column(column, justify="left" if column in ("run", "") else "right")
        running = [r.name for r in self._records.values() if r.state == "running"]
        for name in running[:_LINES]:
            done, steps = steps_of(self._log_of(name))
            spent = duration(time.monotonic() - self._starts.get(name, time.monotonic()))
            bar = ProgressBar(total=max(steps, 1), completed=done, width=24)
            table.add_row(name, spent, f"{done}/{steps}" if steps else "-", bar)
        if len(running) > _LINES:
            table.add_row(f"and {len(running) - _LINES} more", "", "", "")
        caption = Text(self._caption())
        return Group(table, caption) if running else Group(caption)

    def _caption(self) -> str:
        counts: dict[str, int] = {}
        for record in self._records.values():
            state = "finished before" if record.before else record.state
            counts[state] = counts.get(state, 0) + 1
        states = ", ".join(f"{n} {state}" for state, n in counts.items())
        left = self._left()
        return f"{self._count()} {states}" + (
            "" if left is None else f"; about {duration(left)} left"
        )

    def _left(self) -> float | None:
        """Estimate the seconds left from the rate at which runs have finished in this call.

        The rate includes the number of runs side by side: elapsed time / finished runs.
        """
        ended = [r for r in self._records.values() if r.state == "finished" and not r.before]
        left = sum(r.state in ("waiting", "running") for r in self._records.values())
        spent = time.monotonic() - self._began
        return spent / len(ended) * left if ended else None


def steps_of(log: Path) -> tuple[int, int]:
    """Return the steps taken and the total steps, from the progress bar in a run's log.

    Both are 0 before training begins.
    """
    matches = _BAR.findall(last_output(log, _TAIL))
    return (int(matches[-1][0]), int(matches[-1][1])) if matches else (0, 0)
