"""`auto.probe`: try three learning rates for a few steps each, and take the best.

The rates are a third of the recipe's rate, the recipe's rate, and three times that. Each trial
starts from the same untrained model and runs a whole schedule of few steps on most training rows;
its loss is measured on the other training rows. Screening, test and reported rows are not used. The
full run then starts from the same untrained model, on all training rows, as if nothing had been
tried.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from sora_cli.experiments.auto.budget import FACTORS, probe_steps
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.experiments.auto.record import Probe, Tried
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.run.encode import encode
from sora_cli.run.prepare import Prepared
from sora_cli.search.screening import part_rows
from sora_cli.tasks.base import Encoded
from sora_cli.train.checkpoint.files import load_trained, trained_tensors
from sora_cli.train.fit import fit
from sora_cli.train.trainer import build_scorer, build_trainer

_HELD = 1 / 5  # share of the training rows that the loss is measured on
_MOST_HELD = 400  # rows, at most: more only cost time


def probe_rates(
    plan: AutoPlan, full: LoadedRecipe, ready: Prepared, tell: Callable[[str], None]
) -> Probe:
    """Try the rates, and restore the model and its method to their untrained state.

    Args:
        full: recipe of the full run, with its rows and method.
        ready: data, model and adapters of the full run, untrained.
        tell: prints a line about each trial.
    """
    rows, origin = ready.rows.train, ready.rows.origin(ready.rows.train)
    total = full.recipe.training.total_steps(len(ready.train.lengths))
    steps = probe_steps(total)
    share = min(_HELD, _MOST_HELD / len(rows))
    held, others = (
        part.tolist() for part in part_rows(len(rows), plan.block.seed, screening=share)
    )
    judge = encode(ready.task, ready.base, rows.select(held), origin.of(held))
    train = encode(ready.task, ready.base, rows.select(others), origin.of(others), training=True)
    begun = trained_tensors(ready.base.model, ready.method)
    tried = []
    for factor in FACTORS:
        rate = float(f"{factor * full.recipe.training.learning_rate:.3g}")
        tell(f"probe: learning rate {rate:g} for {steps} steps")
        loss = _loss(_at(full, rate, steps), ready, train, judge)
        load_trained(ready.base.model, ready.method, begun)
        tried.append(Tried(learning_rate=rate, loss=loss if math.isfinite(loss) else None))
    # `begin` of the last trial set the method up for the trial's few steps
    ready.method.begin(ready.layers, total_steps=total)
    own = full.recipe.training.learning_rate
    return Probe(
        tried=tried, chosen=best(tried, own), steps=steps, trained=len(others), held_out=len(held)
    )


def best(tried: list[Tried], own: float) -> float:
    """Return the rate with the smallest loss; `own`, the recipe's, if no loss is finite."""
    # of equal losses the recipe's own rate wins: False sorts before True
    finite = [
        (one.loss, one.learning_rate != own, one.learning_rate)
        for one in tried
        if one.loss is not None
    ]
    return min(finite)[-1] if finite else own


def _at(full: LoadedRecipe, rate: float, steps: int) -> LoadedRecipe:
    """Return the full run's recipe at another rate, with few steps and without checkpoints."""
    update = {"learning_rate": rate, "max_steps": steps, "keep_checkpoints": [], "loggers": []}
    training = full.recipe.training.model_copy(update={**update, "checkpoint": "no"})
    recipe = full.recipe.model_copy(update={"training": training})
    return dataclasses.replace(full, recipe=recipe)


def _loss(loaded: LoadedRecipe, ready: Prepared, train: Encoded, judge: Encoded) -> float:
    """Train the model, and return its loss on the rows that were held out."""
    recipe, task, base = loaded.recipe, ready.task, ready.base
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(recipe, task, base, Path(scratch), train=train)
        fit(trainer, ready.method, ready.layers, Path(scratch))
        scorer = build_scorer(recipe, task, base, Path(scratch))
        return task.loss(scorer.predictions_of(judge, []))
