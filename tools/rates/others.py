"""Train with the candidates that need no rate, or that lower it along the run.

    pip install prodigyopt schedulefree
    python -m tools.rates.others [--seeds 0] [data.path=DIR]

LoRA of rank 8 on three short tasks of the arena of rates: by Prodigy (arXiv 2306.06101), by
schedule-free AdamW (arXiv 2405.15682), and by AdamW with a rate that falls to a third after a spike
or a plateau of the loss on held-out rows. Runs that are in the file already are not repeated.
`tools.rates.replay` sets them beside the grid.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import Trainer, TrainerCallback

from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import say
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.run.prepare import prepare
from sora_cli.tasks.base import Encoded
from sora_cli.train.fit import fit
from sora_cli.train.trainer import AdapterTrainer, build_scorer, build_trainer
from tools.rates.replay import OTHERS as FILE
from tools.rates.trial import NO_FILES, Trials
from tools.rates.trials import SWEEPS, read_stored, runs_of, store, task_of

TASKS = ("sst2", "stsb", "offline-digits")
CHECKED = 64
"""Training rows that a run with a falling rate holds out, to check its loss ten times."""
_CHECKS = 10
_SPIKE = 1.05  # times the smallest loss so far
_PATIENCE = 2  # checks that do not lower the loss


@dataclass
class Lowering(TrainerCallback):  # type: ignore[misc]
    """Divide the rates by three after a spike or a plateau of the loss on `rows`.

    A spike is a loss 5 % above the smallest so far; a plateau, two checks that do not lower it.
    After it was lowered, the rate is left for one check.

    Attributes:
        lowered: the steps after which the rate was lowered.
    """

    rows: Encoded
    every: int
    trainer: AdapterTrainer | None = None
    lowered: list[int] = field(default_factory=list)
    _best: float = math.inf
    _waited: int = 0
    _rests: bool = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the loss every few steps."""
        if state.global_step % self.every or state.global_step == state.max_steps:
            return
        assert self.trainer is not None
        loss = self.trainer.task.loss(self.trainer.predictions_of(self.rows, []))
        if self.must_fall(loss):
            self.lowered.append(state.global_step)
            schedule = self.trainer.lr_scheduler
            schedule.base_lrs = [rate / 3 for rate in schedule.base_lrs]

    def must_fall(self, loss: float) -> bool:
        """Take the loss of one check; return whether the rate must fall now."""
        best, self._best = self._best, min(self._best, loss)
        self._waited = 0 if loss < best else self._waited + 1
        if self._rests:
            self._rests = False
            return False
        spiked = not loss <= best * _SPIKE  # true for NaN, too
        self._rests = (spiked and best < math.inf) or self._waited >= _PATIENCE
        if self._rests:
            self._waited = 0
        return self._rests


def _prodigy(_: int, d0: float = 1e-6) -> tuple[Any, dict[str, Any]]:
    from prodigyopt import Prodigy

    return Prodigy, {"safeguard_warmup": True, "use_bias_correction": True, "d0": d0}


def _schedule_free(warmup: int) -> tuple[Any, dict[str, Any]]:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree, {"warmup_steps": warmup}


@dataclass(frozen=True)
class Candidate:
    """A candidate: its rate (Prodigy's is a factor), its schedule and its optimiser.

    Attributes:
        optimizer: warm-up steps -> class and options; None: AdamW.
    """

    name: str
    rate: float
    schedule: str = "linear"
    optimizer: Callable[[int], tuple[Any, dict[str, Any]]] | None = None
    lowers: bool = False


CANDIDATES = [
    Candidate("prodigy", 1.0, optimizer=_prodigy),
    Candidate("prodigy, first 1e-4", 1.0, optimizer=partial(_prodigy, d0=1e-4)),
    *[
        Candidate(f"schedule-free, {rate:g}", rate, "constant", _schedule_free)
        for rate in (1e-3, 3e-3)
    ],
    *[Candidate(f"lowered from {rate:g}", rate, lowers=True) for rate in (1e-3, 3e-3, 1e-2)],
]


def main() -> None:
    """Train what is missing, and store after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    options, words = parser.parse_known_args()
    keep_freed_memory()
    stored = read_stored(options.output)
    done = {(one["candidate"], one["task"], one["seed"]) for one in stored}
    for seed in options.seeds:
        for loaded in _short_runs(seed, words):
            for candidate in CANDIDATES:
                if (candidate.name, task_of(loaded), seed) in done:
                    continue
                stored.append(train(loaded, candidate))
                store(options.output, stored)


def _short_runs(seed: int, words: list[str]) -> Iterator[LoadedRecipe]:
    yield from (run for run in runs_of(SWEEPS[:2], seed, words) if task_of(run) in TASKS)


def train(loaded: LoadedRecipe, candidate: Candidate) -> dict[str, Any]:
    """Train one run of the arena by a candidate; return its scores and rates."""
    update = {**NO_FILES, "learning_rate": candidate.rate, "schedule": candidate.schedule}
    block = loaded.recipe.training.model_copy(update=update)
    recipe = loaded.recipe.model_copy(update={"training": block})
    ready = prepare(recipe, lambda _: contextlib.nullcontext())
    total = block.total_steps(len(ready.train.lengths))
    optimizer: Any = contextlib.nullcontext()
    if candidate.optimizer is not None:
        made = candidate.optimizer(round(block.warmup * total))
        optimizer = patch.object(Trainer, "get_optimizer_cls_and_kwargs", lambda *_: made)
    rows, lowering = ready.train, None
    if candidate.lowers:
        trials = Trials(recipe, ready, CHECKED, blocks=1)
        rows, lowering = trials.train, Lowering(trials.judges[0], total // _CHECKS)
        block = block.model_copy(update={"max_steps": total})
    recipe = recipe.model_copy(update={"training": block})
    with tempfile.TemporaryDirectory() as scratch, optimizer:
        trainer = build_trainer(recipe, ready.task, ready.base, Path(scratch), train=rows)
        if lowering is not None:
            lowering.trainer = trainer
            trainer.add_callback(lowering)
        fit(trainer, ready.method, ready.layers, Path(scratch))
        if hasattr(trainer.optimizer.optimizer, "eval"):
            trainer.optimizer.eval()  # schedule-free: from the gradients' point to the average
        scorer = build_scorer(recipe, ready.task, ready.base, Path(scratch))
        best = ready.task.best
        scores = [
            ready.task.scores(scorer.predictions_of(part, [best]))[best]
            for part in (ready.select, ready.report["validation"])
        ]
    say(f"{task_of(loaded)}, {candidate.name}: {scores[1]:.4f}")
    return {
        "candidate": candidate.name, "task": task_of(loaded), "seed": block.seed,
        "selection": scores[0], "validation": scores[1],
        "lowered": lowering.lowered if lowering else [],
        "estimate": trainer.optimizer.param_groups[0].get("d"),  # Prodigy's rate
    }  # fmt: skip


if __name__ == "__main__":
    main()
