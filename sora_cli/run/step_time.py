"""Measure the time of an optimiser step on a few training rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sora_cli.core.device import device_module, device_type, forked_random
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.prepare import Prepared
from sora_cli.train.precision import autocast
from sora_cli.train.switches import in_loss, in_passes

_TOKENS, _ROWS = 256, 16  # most tokens and rows that are timed (at least one row)
_PASSES, _LONG, _VERY_LONG = 4, 5.0, 30.0  # passes; s in all; s of the first


@dataclass(frozen=True)
class StepTime:
    """A measured time.

    Attributes:
        seconds: forward and backward passes of a whole step with rows of mean length. The
            optimiser's own time, small for adapters, is not included.
        rows: number of rows measured.
        tokens: in all these rows together, padding included.
    """

    seconds: float
    rows: int
    tokens: int


def measure_step(ready: Prepared, recipe: Recipe) -> StepTime:
    """Time forward and backward passes over rows of median length; scale the fastest to a step.

    Where a loss compares the rows of a step and the step has several micro-batches, two of them are
    run: what the loss must know of all rows takes passes of its own. Model, gradients and torch's
    random numbers are restored afterwards.
    """
    several = recipe.training.gradient_accumulation > 1
    parts = 2 if several and ready.task.options.LOSS_COMPARES == "step" else 1
    lengths, batch_size = ready.train.lengths, recipe.training.batch_size
    order = np.argsort(lengths, kind="stable")
    middle = int(lengths[order[len(order) // 2]])
    number = min(max(_TOKENS // middle, 1), _ROWS, batch_size, len(order))
    start = max(len(order) // 2 - number // 2, 0)
    chosen = order[start : start + number]
    tokens = int(lengths[chosen].max()) * len(chosen)
    collate = ready.task.collator(ready.base.processor)
    rows = [ready.train.dataset[int(row)] for row in chosen]
    with forked_random():
        passes = [run_passes(ready, recipe, collate(rows), parts)]  # the first pass also warms up
        while passes[0] < _VERY_LONG and len(passes) < _PASSES:
            if len(passes) > 1 and sum(passes) > _LONG:
                break
            passes.append(run_passes(ready, recipe, collate(rows), parts))
    seconds = min(passes) / parts  # other work on the machine makes a pass longer, never shorter
    step_tokens = float(lengths.mean()) * min(batch_size, len(lengths))
    # taken as linear in the tokens: the quadratic part of attention is not modelled
    return StepTime(seconds * step_tokens / tokens, len(chosen), tokens)


def measure_corpus(ready: Prepared, recipe: Recipe) -> float | None:
    """Time the reading of a few documents of median length; return the seconds of a whole corpus.

    None: there is no corpus.
    """
    processor = ready.base.processor
    corpus = ready.task.corpus_tokens(processor)
    if corpus is None:
        return None
    order = np.argsort(corpus.lengths, kind="stable")
    start = max(len(order) // 2 - _ROWS // 2, 0)
    some = ready.task.some_documents(processor, order[start : start + _ROWS])
    assert some is not None
    batch, device = ready.task.collator(processor)(list(some.dataset)), device_type()
    model = ready.base.model.to(device)
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    before, seconds = model.training, list[float]()
    model.eval()
    try:
        for _ in range(_PASSES):
            began = time.perf_counter()
            with torch.no_grad(), autocast(recipe.training.precision, device):
                model(**ready.task.scored_inputs(inputs))
            device_module().synchronize()
            seconds.append(time.perf_counter() - began)
    finally:
        model.train(before)
    return min(seconds) * float(corpus.lengths.sum()) / float(some.lengths.sum())


def run_passes(
    ready: Prepared, recipe: Recipe, batch: dict[str, torch.Tensor], passes: int = 1
) -> float:
    """Run a step whose micro-batches are all this one, and return its seconds.

    Gradients add up over the passes, as in a step, and are removed at the end.

    Args:
        passes: number of micro-batches.
    """
    model = ready.base.model
    device = device_type()
    if device != "cpu":
        model.to(device)
    inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    before = model.training
    model.train()
    try:
        began = time.perf_counter()
        with in_passes(recipe, model):
            with torch.no_grad(), _computing(recipe, model, device):
                micro_batches = ready.task.before_step(model, [inputs] * passes)
            for each in micro_batches:
                with _computing(recipe, model, device):
                    loss, _ = ready.task.batch_loss(model, each)
                torch.autograd.backward(loss)
        device_module().synchronize()
        return time.perf_counter() - began
    finally:
        model.zero_grad(set_to_none=True)
        model.train(before)


@contextmanager
def _computing(recipe: Recipe, model: nn.Module, device: str) -> Iterator[None]:
    with autocast(recipe.training.precision, device), in_loss(recipe, model, device):
        yield
