"""Store trials of learning rates on every run of the arena of rates.

    python -m tools.rates.trials [--sweeps FILE ...] [--seeds 0] [data.path=DIR]

For each task and seed, LoRA of rank 8 is tried at the rates of the grid for several numbers of
steps, and once at a rate that rises with every step. Trials that are in the file already are not
repeated. `tools.rates.replay` chooses by them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.console import say
from sora_cli.experiments.sweep.plan import plan_sweep
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.run.prepare import prepare
from sora_cli.run.rates.rule import width_of
from tools.rates.trial import Trials

SWEEPS = [
    Path(f"recipes/sweeps/cpu/{name}.yaml") for name in ("rates", "rates-families", "rates-long")
]
FILE = Path("docs/results/rate-trials.jsonl")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SHARES = (0.02, 0.04, 0.08, 0.16)
"""Steps of a trial, as shares of the run's."""
_FEWEST = 4  # steps of a trial
HELD = 160  # rows that score, at most a fifth


def main() -> None:
    """Try, and store after each trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sweeps", nargs="+", type=Path, default=SWEEPS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    options, words = parser.parse_known_args()
    keep_freed_memory()
    stored = read_stored(options.output)
    done = {(one["task"], one["seed"], one["steps"], one["learning_rate"]) for one in stored}
    for seed in options.seeds:
        for loaded in runs_of(options.sweeps, seed, words):
            for one in _try(loaded, done):
                stored.append(one)
                store(options.output, stored)


def read_stored(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL file; none if it does not exist yet."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def store(path: Path, stored: Sequence[Mapping[str, Any]]) -> None:
    """Write the lines of a JSONL file."""
    write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in stored))


def runs_of(sweeps: list[Path], seed: int, words: list[str]) -> Iterator[LoadedRecipe]:
    """Yield the runs of LoRA at the lowest rate, one for each task."""
    for sweep in sweeps:
        own = [w for w in words if sweep.stem != "rates-families" or not w.startswith("data.path")]
        for run in plan_sweep(sweep, [*own, f"training.seed={seed}"]).runs:
            block = run.loaded.recipe.training
            if run.begins is None and block.learning_rate == RATES[0]:
                yield run.loaded


def task_of(loaded: LoadedRecipe) -> str:
    """Return the name of a run's task, which tells a long run from a short one."""
    return task_name(loaded.name, loaded.recipe.training.max_steps)


def task_name(name: str, max_steps: int | None) -> str:
    """Return a task's name from a recipe's: the long runs are those with a number of steps."""
    return f"{name}-long" if max_steps else name


def _try(loaded: LoadedRecipe, done: set[tuple[str, int, int, float]]) -> Iterator[dict[str, Any]]:
    recipe, seed, task = loaded.recipe, loaded.recipe.training.seed, task_of(loaded)
    ready = prepare(recipe, lambda _: contextlib.nullcontext())
    trials = None
    total = recipe.training.total_steps(len(ready.train.lengths))
    width = width_of(ready.base.model.config)
    for steps in dict.fromkeys(max(round(total * share), _FEWEST) for share in SHARES):
        for rate in RATES:
            if (task, seed, steps, rate) in done:
                continue
            scored = min(HELD, len(ready.rows.train) // 5)
            trials = trials or Trials(recipe, ready, scored)
            began = time.perf_counter()
            trial = trials.at(rate, steps)
            seconds = time.perf_counter() - began
            say(f"{task}, seed {seed}: {steps} steps at {rate:g}: {trial.loss:.4f}")
            yield {
                "task": task, "seed": seed, "total": total, "batch": recipe.training.batch_size,
                "width": width, "scored": scored, "steps": steps, "learning_rate": rate,
                "seconds": round(seconds, 2),
                "losses": [round(x, 5) for x in trial.losses],
                "held": [round(x, 5) for x in trial.held],
            }  # fmt: skip


if __name__ == "__main__":
    main()
