"""Notice steps that take far longer than the first ones: other programs need this machine's cores.

Threads of a step wait for each other many times, so that one core that is shared slows them all
(benchmarks/busy.py).
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from sora_cli.core.device import is_accelerated
from sora_cli.core.processes import is_main
from sora_cli.core.shell import resumes, resuming
from sora_cli.train.diagnosis import Pass

if TYPE_CHECKING:
    from sora_cli.train.trainer import AdapterTrainer

_TRIAL = 20  # steps whose seconds are the measure of later ones
_RECENT = 10  # later steps whose median is looked at: a pause in one of them means nothing
_SLOW = 2.0
_REPEATED = (["path"], ["auto"])
"""Commands that continue when they are typed again."""


class Pace(TrainerCallback):  # type: ignore[misc]
    """The callback that measures the steps, and tells once if they have become slow.

    Args:
        tell: prints a line.
        clock: returns seconds.
    """

    def __init__(
        self, tell: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._tell, self._clock = tell, clock
        self._began, self._size, self._told = 0.0, 0, False
        self._trial: list[tuple[int, float]] = []  # size, seconds
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def watch(self, trainer: AdapterTrainer) -> None:
        """Follow a trainer's steps and the sizes of their batches.

        Steps of one thread, or on a GPU, are left alone, and a run that could not be resumed.
        """
        if not is_main() or is_accelerated() or torch.get_num_threads() == 1:
            return
        if trainer.recipe.training.checkpoint == "no":
            return
        inner = trainer.note_pass

        def note_pass(one: Pass) -> None:
            self._size += max(x.numel() for x in one.inputs.values() if isinstance(x, Tensor))
            inner(one)

        trainer.note_pass = note_pass
        trainer.add_callback(self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the step's clock."""
        self._began, self._size = self._clock(), 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare the step with the steps of the trial; checkpoints and evaluations come later."""
        times = self.note(self._size, self._clock() - self._began)
        if times is not None and times > _SLOW and not self._told:
            self._told = True
            self._tell(slow_line(times, torch.get_num_threads(), sys.argv[1:]))

    def note(self, size: int, seconds: float) -> float | None:
        """Return how many times as long the last steps took as the trial's; None: too few yet.

        A step is compared with the fastest of the trial that was at least as large: rows have many
        lengths, and a short batch takes more time per token than a long one.

        Args:
            size: numbers in the step's batches.
        """
        if len(self._trial) < _TRIAL:
            self._trial.append((size, seconds))
            return None
        known = [taken for other, taken in self._trial if other >= size]
        if known:
            self._recent.append(seconds / min(known))
        return median(self._recent) if len(self._recent) == _RECENT else None


def slow_line(times: float, threads: int, words: list[str]) -> str:
    """Return the line for the user: the likely cause, and the command that goes on.

    Args:
        times: how many times as long steps take as at first.
        words: of the command line, after `sora`.
    """
    fewer = max(threads // 2, 1)
    # --force would delete what was trained so far
    command = ["sora", *(word for word in words if word != "--force")]
    again = "before the same command"
    if resumes(words):
        again = resuming(command)
    elif words[:1] in _REPEATED:
        again = shlex.join(command)
    return (
        f"note: steps take {times:.1f} times as long as the first ones: other programs seem to use "
        f"this machine's cores, and threads that wait for each other suffer most; to go on with "
        f"{fewer} thread{'s' * (fewer > 1)} in place of {threads}: Ctrl-C, then "
        f"OMP_NUM_THREADS={fewer} {again}"
    )
