"""Train and measure the stages of a path; each stage starts from the end of the previous stage.

Every stage has a new optimiser and learning-rate schedule. Source: Ding et al. 2023, arXiv
2311.11696, Algorithm 1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from methods.errors import MethodError
from methods.factors import LowRankFactors
from sora_cli.experiments.path.plan import StagePlan, varied_option
from sora_cli.experiments.path.record import SELECTION, TRAIN_SUBSET, PathReport, Stage, relative_to
from sora_cli.report import RunReport
from sora_cli.run.encode import encode
from sora_cli.run.evaluate import evaluate_all
from sora_cli.run.output import clear_run
from sora_cli.run.prepare import Prepared
from sora_cli.run.runner import Runner
from sora_cli.tasks.encoded import Encoded
from sora_cli.train.trainer import AdapterTrainer

Factors = dict[str, LowRankFactors]


class Stages:
    """Trains and measures the stages of one path.

    Args:
        ready: data, model and adapters, prepared for a run of the first stage.
        plans: plans of all stages.
        report: the path's record; new stages are compared with its stages.
        output: the path's directory.
    """

    def __init__(
        self, ready: Prepared, plans: list[StagePlan], report: PathReport, output: Path
    ) -> None:
        self.ready, self.plans, self.report, self.output = ready, plans, report, output
        self.option = varied_option(plans[0].loaded)
        self.splits = _scored_splits(ready, plans[0])
        self.runner = Runner(ready, plans[0].loaded, output)
        report.main_metric = ready.task.best
        report.greater_is_better = plans[0].recipe.task.options.greater_is_better
        report.generalisation = next(iter(ready.report))
        report.choice = SELECTION if SELECTION in self.splits else report.generalisation
        report.rows = {name: len(rows.lengths) for name, rows in self.splits.items()}
        report.selection = ready.rows.rule
        report.head_parameters = self.runner.setup.parameters.head

    def check(self) -> None:
        """Check the method's schedule in every stage, before the first stage is trained.

        Raises:
            MethodError: a stage's schedule is impossible; the message names the stage.
        """
        for plan in self.plans:
            try:
                self.runner.with_method(plan.loaded)
            except MethodError as error:
                steps = plan.recipe.training.total_steps(len(self.ready.train.lengths))
                raise MethodError(f"stage {plan.index} of {steps} steps: {error}") from error

    def run(self, plan: StagePlan) -> Stage:
        """Train and measure a stage, and write its files."""
        start = time.perf_counter()
        directory = self.output / plan.directory
        clear_run(directory)  # an interrupted stage may have left files
        if plan.index:
            self.restore(plan.index - 1)
        # the former stage's factors: the energy that dies in this stage is measured in them
        before = self.factors() if plan.index else {}
        # after `restore`, which makes a method with the previous stage's value
        self.ready.method.set_option(self.option, plan.value)
        name = f"{plan.loaded.name}, stage {plan.index}: {self.option} {plan.value}"
        rate = self.report.learning_rate  # every stage takes the first one's
        run = self.runner.next_run(plan.loaded, name, directory, ready=self.ready, rate=rate)
        report = self.runner.train(run, score=self._score)
        self.report.learning_rate = report.learning_rate
        stage = self._measure(plan, report, before)
        return stage.model_copy(update={"seconds": round(time.perf_counter() - start, 1)})

    def _score(self, report: RunReport, trainer: AdapterTrainer, ready: Prepared) -> None:
        report.metrics = evaluate_all(trainer, ready.task, self.splits)

    def restore(self, index: int) -> None:
        """Put a finished stage's state back into the model and the method."""
        plan = self.plans[index]
        self.ready = self.runner.restore(plan.loaded, self.output / plan.directory)

    def forget(self, index: int) -> None:
        """Delete a stage's saved state; stage 0's stays, for the controls."""
        if index > 0:
            self.runner.forget(self.output / self.plans[index].directory)

    def factors(self) -> Factors:
        """Return the factors of every layer's present update, by module path."""
        return {path: self.ready.method.factors(m) for path, m in self.ready.layers.items()}

    def _measure(self, plan: StagePlan, run: RunReport, before: Factors) -> Stage:
        after = self.factors()
        alive = {
            path: f.live_components().nonzero().flatten().tolist() for path, f in after.items()
        }
        known = plan.index and not self.ready.method.config.turns_basis
        previous = self.report.stages[-1].alive if known else None
        stage = Stage(
            index=plan.index,
            value=plan.value,
            directory=plan.directory,
            epochs=plan.recipe.training.epochs,
            steps=run.steps or 0,
            live=sum(len(indices) for indices in alive.values()),
            total=sum(f.rank for f in after.values()),
            alive=alive,
            parameters=run.parameters.adapter_end,
            metrics=run.metrics,
            relative={},
            norm=total_norm(after),
            energy_removed=None if previous is None else energy_lost(before, previous, alive),
            seconds=0.0,
        )
        # stage 0 is compared with itself
        first = self.report.stages[0] if self.report.stages else stage
        score = self.report.score
        relative = {
            split: relative_to(score(first, split), score(stage, split)) for split in self.splits
        }
        return stage.model_copy(update={"relative": relative})


def total_norm(factors: Mapping[str, LowRankFactors]) -> float:
    """Return ||dW||_F over all modules together."""
    return float(np.sqrt(sum(f.norm() ** 2 for f in factors.values())))


def energy_lost(
    before: Mapping[str, LowRankFactors],
    alive_before: Mapping[str, list[int]],
    alive: Mapping[str, list[int]],
) -> float:
    """Return the share of the former ||dW||_F^2 in components that have died since.

    The dead components of a module are summed to one matrix before the norm is taken, since their
    terms b_i a_i are not orthogonal.
    """
    lost = whole = 0.0
    for path, factors in before.items():
        dead = sorted(set(alive_before[path]) - set(alive[path]))
        lost += factors.select(mask(dead, factors.rank)).norm() ** 2
        whole += factors.norm() ** 2
    return lost / whole if whole else 0.0


def mask(indices: list[int], rank: int) -> Tensor:
    """Return a boolean mask, (rank,), true at the indices."""
    chosen = torch.zeros(rank, dtype=torch.bool)
    chosen[indices] = True
    return chosen


def _scored_splits(ready: Prepared, plan: StagePlan) -> dict[str, Encoded]:
    """Return the splits to score: training subset, reported splits, selection rows if separate."""
    block = plan.recipe.path
    assert block is not None
    splits = {TRAIN_SUBSET: _subset(ready, block.memorisation_rows, block.memorisation_seed)}
    splits.update(ready.report)
    if plan.recipe.data.selection != "validation":
        splits[SELECTION] = ready.select
    return splits


def _subset(ready: Prepared, limit: int, seed: int) -> Encoded:
    """Draw a random subset of the training rows by a seed, in the data set's order.

    They are encoded anew, as rows that are scored: training may pack rows, or read them in pairs.
    """
    rows = ready.rows.train
    chosen = np.arange(len(rows))
    if limit < len(rows):
        chosen = np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))
    origin = ready.rows.origin(rows).of(chosen.tolist())
    return encode(ready.task, ready.base, rows.select(chosen.tolist()), origin)
