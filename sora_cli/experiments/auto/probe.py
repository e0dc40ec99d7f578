"""`auto.probe`: three learning rates for a few steps each, and the one with the smallest loss.

The rates are a third of the recipe's, the recipe's, and three times that. Each begins with the
same untrained model and takes a whole schedule of few steps on most of the training rows; the loss
is that on the rest of them. Rows that choose a size are not among them, nor reported rows. The full
run then trains on all training rows, from the same start, as if nothing had been tried.
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

_HELD = 1 / 5  # of the training rows
_MOST_HELD = 400  # rows


def probe_rates(
    plan: AutoPlan, full: LoadedRecipe, ready: Prepared, tell: Callable[[str], None]
) -> Probe:
    """Try the rates; the model and its method end as they began.

    Args:
        full: the full run, whose rows and method are taken.
        ready: its data, model and adapters, untrained.
        tell: is told of each rate that is tried.
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
    ready.method.begin(ready.layers, total_steps=total)
    own = full.recipe.training.learning_rate
    return Probe(
        tried=tried, chosen=best(tried, own), steps=steps, trained=len(others), held_out=len(held)
    )


def best(tried: list[Tried], own: float) -> float:
    """Return the rate with the smallest loss; the recipe's own where none has one.

    Args:
        own: the recipe's.
    """
    finite = [
        (one.loss, one.learning_rate != own, one.learning_rate)
        for one in tried
        if one.loss is not None
    ]
    return min(finite)[-1] if finite else own


def _at(full: LoadedRecipe, rate: float, steps: int) -> LoadedRecipe:
    """Return the full run's recipe for a few steps at a rate."""
    update = {"learning_rate": rate, "max_steps": steps, "keep_checkpoints": [], "loggers": []}
    training = full.recipe.training.model_copy(update={**update, "checkpoint": "no"})
    recipe = full.recipe.model_copy(update={"training": training})
    return dataclasses.replace(full, recipe=recipe)


def _loss(loaded: LoadedRecipe, ready: Prepared, train: Encoded, judge: Encoded) -> float:
    """Train the model as it is, and return its loss on the rows held out."""
    recipe, task, base = loaded.recipe, ready.task, ready.base
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build_trainer(recipe, task, base, Path(scratch), train=train)
        fit(trainer, ready.method, ready.layers, Path(scratch))
        scorer = build_scorer(recipe, task, base, Path(scratch))
        return task.loss(scorer.predictions_of(judge, []))
