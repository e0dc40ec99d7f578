"""Train every size that `sora auto` could choose, and store the scores of all rows.

    python -m tools.auto.train [--tasks stsb sst2] [--seeds 0 1] [--rows 5000] data.path=DIR
    python -m tools.auto.train --answers [--tolerance 0.25]

It trains the runs of recipes/sweeps/cpu/auto.yaml, each once for all promises: at full rank, all
sizes, and plain low-rank training at ranks 1, 2 and 4. All of these models score the rows that were
not trained on. Runs that are already in the file are not trained again. With `--answers` the models
answer these rows without their labels, for `--max-differ`, and plain ranks are not trained.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from methods.budgets import costs_of
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import say
from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.cuts import score_cuts
from sora_cli.experiments.auto.plan import AutoPlan, plan_auto
from sora_cli.experiments.sweep.plan import plan_sweep
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import RunReport
from sora_cli.run.prepare import Prepared, prepare
from sora_cli.run.runner import Runner
from sora_cli.search.answers import read_answer_rows
from sora_cli.search.row_set import SCREENING, TEST
from sora_cli.search.rows import choosing_rows, count_rows
from sora_cli.search.size import Size, size_of
from sora_cli.search.test_rows import TestRows
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import SAME, RowScores
from tools.auto.stored import FULL, UNCUT, Stored, StoredSize, read_all, write_all

SWEEP = Path("recipes/sweeps/cpu/auto.yaml")
FILE = Path("docs/results/auto.jsonl")
ANSWERS_FILE = Path("docs/results/auto-answers.jsonl")
RANKS = (1, 2, 4)
"""Ranks of plain low-rank training, to compare with."""
_SCREENING = 1000  # rows that are also scored with the unhealed cuts
_Read = Callable[[Recipe, Task, TestRows, Path], TestRows]
"""Turns labelled rows into rows without labels; its last argument is a scratch directory."""


def main() -> None:
    """Train and store the requested runs that the file does not have yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sweep", type=Path, default=SWEEP, help="sweep file with all runs")
    parser.add_argument("--tasks", nargs="+", help="names of recipes, such as sst2; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds of the runs; default: all")
    parser.add_argument("--rows", type=int, default=5000, help="largest number of rows to score")
    parser.add_argument("--answers", action="store_true", help="store answers, not scores")
    parser.add_argument("--tolerance", type=float, help="of answers that are numbers")
    parser.add_argument("-o", "--output", type=Path, help="file to add the runs to")
    options, words = parser.parse_known_args()
    keep_freed_memory()
    output = options.output or (ANSWERS_FILE if options.answers else FILE)
    stored = list(read_all(output))
    done = {(one.task, one.seed) for one in stored}
    for loaded in _runs(options.sweep, words):
        key = (loaded.name, loaded.recipe.training.seed)
        wanted = options.tasks is None or key[0] in options.tasks
        wanted &= options.seeds is None or key[1] in options.seeds
        if key in done or not wanted:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="sora-auto-") as scratch:
            read = partial(_as_answers, tolerance=options.tolerance) if options.answers else None
            stored.append(store(loaded, options.rows, Path(scratch), read))
        done.add(key)
        write_all(output, stored)
        say(f"{key[0]}, seed {key[1]}: {time.perf_counter() - began:.0f} s")


def _runs(sweep: Path, words: list[str]) -> Iterator[LoadedRecipe]:
    yield from (run.loaded for run in plan_sweep(sweep, words).runs)


def store(loaded: LoadedRecipe, most: int, scratch: Path, read: _Read | None = None) -> Stored:
    """Train all sizes of a run, and score them on the pool, or answer it.

    Args:
        most: largest number of rows in the pool.
        scratch: directory for all files of the runs.
        read: reads the pool without its labels; answers are stored, and no plain ranks are trained.
    """
    plan = dataclasses.replace(plan_auto(loaded), output=scratch)
    total = count_rows(loaded.recipe)[0]
    planned = plan.row_plan(total)
    pool = min(most, total - planned.trained)
    screening = min(_SCREENING, pool // 4)
    rows = dataclasses.replace(planned, screening=screening, test=pool - screening, scoring=0.0)
    job = _Job(plan, rows, read)
    report = job.train(FULL, plan.full(rows))
    assert report.steps is not None
    cuts = score_cuts(
        job.runner, plan.candidate(1, 1, rows), partial(job.scores_of, SCREENING), None
    )
    sizes = []
    for number, (target, size) in enumerate(zip(cuts.planned, cuts.sizes, strict=True)):
        candidate = plan.candidate(number + 1, target.max_params, rows)
        trained = job.train(f"healed-{number}", candidate)
        ranks = {path: rank.end for path, rank in trained.ranks.items()}
        healed = size_of(ranks, job.cost, None)
        sizes.append(StoredSize(target.share, target.max_params, _three(size), _three(healed)))
    names = [UNCUT, *(f"cut-{number}" for number in range(len(sizes)))]
    unhealed = dict(zip(names, [cuts.whole, *cuts.scores], strict=True))
    plain = [] if read else [_train_plain_rank(plan, rank, rows) for rank in RANKS]
    for other in plain:
        job.scores |= other.scores
        job.reported |= other.reported
    return Stored(
        task=loaded.name,
        seed=loaded.recipe.training.seed,
        rows=len(job.scores[FULL]),
        screening=len(cuts.whole),
        planned=(planned.screening, planned.test),
        trained=planned.trained,
        full=_three(cuts.full),
        sizes=tuple(sizes),
        lora={f"lora-{other.plan.rank}": other.parameters for other in plain},
        **numbered(job.scores, unhealed),
        reported=job.reported,
    )


def _train_plain_rank(plan: AutoPlan, rank: int, rows: RowPlan) -> _Job:
    """Train a plain rank with the same scaling alpha / r as the full run and its cuts.

    With the full run's alpha instead, rank 1 would be scaled by 16, not by 2, and the learning rate
    of the full rank would be too large for it: on STS-B the correlation ended at 0.26 (-0.08 on
    other validation rows), and at 0.85 with the same scaling.
    """
    output = plan.output / f"rank-{rank}"
    alpha = plan.alpha * rank / plan.rank
    job = _Job(dataclasses.replace(plan, rank=rank, alpha=alpha, output=output), rows)
    job.train(f"lora-{rank}", job.plan.full(rows))
    return job


def _three(size: Size) -> tuple[int, int, int]:
    return size.parameters, size.components, size.largest_rank


class _Job:
    """The runs of one rank, with their scores."""

    def __init__(self, plan: AutoPlan, rows: RowPlan, read: _Read | None = None) -> None:
        full = plan.full(rows)
        self.plan = plan
        self.ready: Prepared = prepare(full.recipe, lambda _: contextlib.nullcontext())
        self.runner = Runner(self.ready, full, plan.output)
        self.cost = costs_of(self.ready.layers)
        task = self.ready.task
        held = choosing_rows(task, rows.screening / rows.held_out, plan.block.seed)
        if read is not None:
            held = {n: read(full.recipe, task, held[n], plan.output / f"{n}.parquet") for n in held}
        self._held = {n: (part, part.encoded(self.ready.base)) for n, part in held.items()}
        self.scores: dict[str, RowScores] = {}
        self.reported: dict[str, float] = {}

    @property
    def parameters(self) -> int:
        """Parameters of the adapter at the plan's rank."""
        return self.plan.rank * sum(self.cost.values())

    def train(self, name: str, loaded: LoadedRecipe) -> RunReport:
        """Train a run, and score the pool and the validation split with the trained model."""
        report = self.runner.train(self.runner.next_run(loaded, name))
        parts = [self.scores_of(part) for part in (SCREENING, TEST)]
        everything = np.concatenate([part.parts for part in parts])
        self.scores[name] = dataclasses.replace(parts[0], parts=everything)
        validation = next(iter(self.ready.report.values()))
        self.reported[name] = round(self.runner.scores(validation).value, 6)
        return report

    def scores_of(self, part: str) -> RowScores:
        """Return the scores, or the answers, of the current model on a part of the pool."""
        rows, encoded = self._held[part]
        return rows.scores(self.runner.scorer(), encoded)


def _as_answers(
    recipe: Recipe, task: Task, part: TestRows, file: Path, *, tolerance: float | None
) -> TestRows:
    """Write rows to a file, and read it as `--unlabelled` does; repeated rows are left out."""
    part.rows.to_parquet(file)
    needed = tolerance if task.options.ANSWERS_NUMBERS else None
    return read_answer_rows(recipe, file, trained=task, tolerance=needed)


def numbered(scores: Mapping[str, RowScores], unhealed: Mapping[str, RowScores]) -> dict[str, Any]:
    """Replace digests of answers by small numbers, which pack well: full rank's answer is 0.

    Two answers to one row have the same number if, and only if, they are equal. Other scores are
    returned as they are.
    """
    first = scores[FULL]
    if first.formula != SAME:
        return {"scores": scores, "unhealed": unhealed}
    known = [{first.parts[row, 0]: 0} for row in range(len(first))]

    def numbers(one: RowScores) -> RowScores:
        pairs = zip(known, one.parts[:, 0], strict=False)  # unhealed cuts answer the first rows
        parts = [[row.setdefault(code, len(row))] for row, code in pairs]
        return dataclasses.replace(one, parts=np.array(parts, dtype=np.float64))

    return {
        "scores": {name: numbers(one) for name, one in scores.items()},
        "unhealed": {name: numbers(one) for name, one in unhealed.items()},
    }


if __name__ == "__main__":
    main()
