"""Checks of the contract of a task family that train a run, into a folder that is deleted again.

Like those of `task_contract`, each check takes a recipe of a small run and raises `AssertionError`
with the fault. `RUN_CHECKS` holds them all. They need a recipe whose rows can be learned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from sora_cli.adapter.places import ADAPTER
from sora_cli.adapter.reading import read_adapter
from sora_cli.merge.merge import merge_adapter
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.encode import encode
from sora_cli.run.evaluate import evaluate_run
from sora_cli.run.memory import longest_rows
from sora_cli.run.memory_trace import Passes
from sora_cli.run.prepare import Prepared, load_task, prepare
from sora_cli.run.reference import referenced_task
from sora_cli.run.runner import Runner
from sora_cli.run.scoring import load_target, score_target
from sora_cli.train.checkpoint.files import trained_tensors
from sora_cli.train.trainer import build_scorer

_CLOSE = 1e-4  # relative difference of scores by the model in memory and by its files
_MEMORY = 0.1  # relative error of a forecast


def the_loss_falls(recipe: Recipe) -> None:
    """Check that training lowers the loss of the rows that are trained on."""
    with _folder() as folder:
        ready = _prepared(recipe)
        before = _loss(recipe, ready)
        _train(recipe, ready, folder / "run")
        after = _loss(recipe, ready)
    assert after < before, f"training leaves the loss at {after:g}; it was {before:g}"


def a_resumed_run_is_the_same(recipe: Recipe) -> None:
    """Check that a run that is stopped half-way and resumed ends with the same numbers."""
    often = recipe.training.model_copy(update={"checkpoint": 1})
    recipe = recipe.model_copy(update={"training": often})
    with _folder() as folder:
        whole, _ = _train(recipe, _prepared(recipe), folder / "whole")
        steps = recipe.training.total_steps(len(whole.train.lengths))
        assert steps > 1, "the run has one step: it cannot be stopped half-way"
        try:
            _train(recipe, _prepared(recipe), folder / "stopped", stop=_Stop(steps // 2))
        except _StoppedError:
            resumed, _ = _train(recipe, _prepared(recipe), folder / "stopped")
    wanted, found = (trained_tensors(run.base.model, run.method) for run in (whole, resumed))
    other = [name for name in wanted if not torch.equal(wanted[name], found[name])]
    assert not other, f"{len(other)} of {len(wanted)} tensors differ after a resume: {other[0]}"


def files_score_as_the_model(recipe: Recipe) -> None:
    """Check that adapter and merged model score as the model in memory.

    The adapter also answers rows without labels as it answers rows with labels.
    """
    with _folder() as folder:
        ready, report = _train(recipe, _prepared(recipe), folder / "run")
        adapter = folder / "run" / ADAPTER
        _same("the adapter's files", _scores(adapter, recipe), report)
        answered, alone = (
            _answers(adapter, recipe, without_labels=without) for without in (False, True)
        )
        assert answered == alone, "rows without labels have other answers than rows with labels"
        if read_adapter(adapter).parts:
            merged = folder / "merged"
            merge_adapter(read_adapter(adapter), merged)
            if ready.task.reference is None:  # which a merged model does not hold
                _same("the merged model", _scores(merged, recipe), report)


def memory_is_forecast(recipe: Recipe) -> None:
    """Check that the memory of a pass is forecast without data, within a tenth."""
    ready, block = _prepared(recipe), recipe.training
    collate = ready.task.collator(ready.base.processor)
    work = Passes(ready.base.model, collate, "cpu", block.precision, ready.task)
    pass_rows = block.batch_size // block.gradient_accumulation
    for passes, what, part in ((1, "training", ready.train), (0, "an evaluation", ready.select)):
        rows = longest_rows(part, pass_rows)
        forecast, exact = work.trace(rows, passes)
        assert exact, f"{what} cannot be traced without data: its memory is extrapolated"
        real = work.measure(rows, passes).peak
        near = abs(forecast.peak - real) <= _MEMORY * real
        assert near, f"{what} is forecast to take {forecast.peak:,.0f} bytes, and takes {real:,.0f}"


RUN_CHECKS = (
    the_loss_falls,
    a_resumed_run_is_the_same,
    files_score_as_the_model,
    memory_is_forecast,
)

Scores = dict[str, dict[str, float]]
"""By split, by metric."""


class _StoppedError(Exception):
    """A run was stopped on purpose."""


class _Stop(TrainerCallback):  # type: ignore[misc]
    """Stops a run before a step, after the checkpoint of the step before."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop once so many steps are done."""
        if state.global_step == self._steps:
            raise _StoppedError


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _prepared(recipe: Recipe) -> Prepared:
    return prepare(recipe, lambda _: nullcontext())


def _train(
    recipe: Recipe, ready: Prepared, folder: Path, *, stop: _Stop | None = None
) -> tuple[Prepared, Scores]:
    """Train a run, or the rest of one that was stopped; return its model and its scores."""
    loaded = LoadedRecipe(recipe, {}, (), Path("contract.yaml"), "contract")
    runner = Runner(ready, loaded, folder)
    run = runner.next_run(loaded, "contract", folder)
    if stop is not None:
        run.trainer.add_callback(stop)
    report = runner.train(run, score=evaluate_run)
    return ready, report.metrics


def _loss(recipe: Recipe, ready: Prepared) -> float:
    """Return the loss of the training rows, encoded as rows that are scored."""
    scorer, rows = build_scorer(recipe, ready.task, ready.base), ready.rows
    encoded = encode(ready.task, ready.base, rows.train, rows.origin(rows.train))
    loss = ready.task.loss(scorer.predictions_of(encoded, []))
    scorer.unprepare()  # training prepares the model anew
    return loss


def _scores(target: Path, recipe: Recipe) -> Scores:
    return {each.split: each.scores for each in score_target(str(target), recipe, records=False)}


def _same(what: str, found: Scores, wanted: Scores) -> None:
    for split, scores in wanted.items():
        for name, score in scores.items():
            near = np.isclose(found[split][name], score, rtol=_CLOSE, atol=1e-6, equal_nan=True)
            assert near, f"{name} of {split} is {score:g}, and {found[split][name]:g} by {what}"


def _answers(adapter: Path, recipe: Recipe, *, without_labels: bool) -> list[list[Any]]:
    """Return the answers of an adapter to the rows that choose the checkpoint, by column."""
    task, rows = load_task(recipe)
    part = rows.select
    if without_labels:
        names = read_adapter(adapter).meta.labels
        data = recipe.data.model_copy(update={"label_names": names and list(names)})
        label = [] if task.label_column is None else [task.label_column]
        task = referenced_task(recipe, data)
        part = task.stand_in(part.remove_columns(label))
        task.bind(part)
    base = load_target(str(adapter), recipe, task)
    encoded = encode(task, base, part, rows.origin(rows.select), may_lack=True)
    outputs = build_scorer(recipe, task, base).answers_of(encoded)
    return [list(column) for column in task.answer_columns(outputs)]
