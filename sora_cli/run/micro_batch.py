"""Choose the largest micro-batch that fits into memory (`training.micro_batch: auto`).

Candidates are the sizes that split a step's rows evenly. The largest candidate whose predicted peak
(`run/memory`) leaves a tenth of the memory free is tried once: the passes of one step over the
longest training rows, with the memory of AdamW's moments reserved. If memory runs out, the next
candidate of at most half the rows is tried. All processes take the smallest size that any of them
chose.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from sora_cli.core.console import say, size
from sora_cli.core.device import (
    device_module,
    device_type,
    empty_cache,
    forked_random,
    is_accelerated,
    process_state,
)
from sora_cli.core.environment import free_memory
from sora_cli.core.errors import SoraError
from sora_cli.core.out_of_memory import ran_out
from sora_cli.core.processes import world_size
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import MicroBatchChoice
from sora_cli.run.memory import longest_rows, predict_memory, resident_memory
from sora_cli.run.prepare import Prepared
from sora_cli.run.step_time import run_passes
from sora_cli.train.optimizers import moment_bytes

_SHARE = 0.9
"""Share of the memory that a predicted peak may fill: predictions are some per cent off."""
_KEY = "training.micro_batch"


def available_memory() -> float | None:
    """Return the bytes that a run can use, with the memory it already holds; None if unknown."""
    if is_accelerated():
        free, _ = device_module().mem_get_info()
        return float(free + device_module().memory_reserved())
    free_bytes = free_memory()
    return None if free_bytes is None else free_bytes / world_size() + resident_memory()


def predicted_peak(ready: Prepared, recipe: Recipe, rows: int) -> float:
    """Return the predicted peak memory, in bytes, of training with micro-batches of `rows` rows."""
    return predict_memory(ready, recipe, rows_per_pass=rows).training_peak


def step_fits(ready: Prepared, recipe: Recipe, rows: int) -> bool:
    """Run the passes of one step over the longest rows; return whether the memory was enough.

    Model, gradients and torch's random numbers are restored afterwards.
    """
    part, block = longest_rows(ready.train, rows), recipe.training
    batch = ready.task.collator(ready.base.processor)(list(part.dataset))
    model: nn.Module = ready.base.model
    device = device_type()
    # in the second pass of a step the gradients of the first are alive
    passes = 2 if block.gradient_accumulation > 1 else 1
    fits = True
    try:
        with left_as_it_was(model):
            n_bytes = moment_bytes(block.optimizer, model, device)
            moments = torch.empty(n_bytes, dtype=torch.uint8, device=device)
            run_passes(ready, recipe, batch, passes)
            del moments
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        fits = False
    if not fits:  # the failed pass's tensors may be in cycles: they take the next one's memory
        gc.collect()
        empty_cache()
    return fits


@dataclass(frozen=True)
class Machine:
    """The three questions that the choice asks of the machine; tests answer them themselves.

    Attributes:
        available: bytes that the run can use; None if unknown.
        predict: predicted bytes of training with micro-batches of this many rows.
        fits: tries one step with micro-batches of this many rows; False if memory ran out.
    """

    available: Callable[[], float | None] = available_memory
    predict: Callable[[Prepared, Recipe, int], float] = predicted_peak
    fits: Callable[[Prepared, Recipe, int], bool] = step_fits


PREDICTION_ONLY = Machine(fits=lambda *_: True)
"""A machine for dry runs, which take no step: every candidate fits."""


def settle(
    recipe: Recipe, ready: Prepared, *, stored: int | None = None, machine: Machine | None = None
) -> tuple[Recipe, MicroBatchChoice | None]:
    """Replace `micro_batch: auto` by a fixed `gradient_accumulation`; also return the choice.

    The choice is None if the recipe does not leave it open. Refuses a model for which not even
    one row fits, and a task whose loss depends on the micro-batches.

    Args:
        ready: right after `prepare`.
        stored: micro-batch rows of the run that is resumed; they must split evenly over these
            processes.
    """
    if recipe.training.micro_batch is None:
        return recipe, None
    if ready.task.options.LOSS_COMPARES == "micro-batch":
        raise SoraError(
            f"the loss of {ready.task.name} compares the rows of a micro-batch with each other, "
            "so memory alone cannot decide its size",
            hint="training.micro_batch=null",
            key=_KEY,
        )
    share = recipe.training.batch_size // world_size()
    if stored is None:
        chosen = _agreed(_find(recipe, ready, share, machine or Machine()))
        say(f"micro-batch: {_described(chosen)}")
    elif share % stored:
        raise SoraError(
            f"the run's micro-batches of {stored} rows do not divide the {share} rows of a process",
            hint="resume with the same number of processes as at the start",
            key=_KEY,
        )
    else:
        chosen = MicroBatchChoice(rows=stored, parts=share // stored)
    return _with_parts(recipe, chosen.parts), chosen


def _find(recipe: Recipe, ready: Prepared, share: int, machine: Machine) -> MicroBatchChoice:
    """Return the largest micro-batch that fits on this process (`rows=0`: none does)."""
    available, failed = machine.available(), list[int]()
    for rows in (n for n in range(share, 0, -1) if share % n == 0):
        # the prediction was wrong once: a slightly smaller size is likely to fail, too
        if failed and rows > failed[-1] // 2 and rows > 1:
            continue
        split = _with_parts(recipe, share // rows)
        predicted = machine.predict(ready, split, rows)
        # a single row is tried even if the prediction says no
        if available is not None and predicted > _SHARE * available and rows > 1:
            continue
        if machine.fits(ready, split, rows):
            return MicroBatchChoice(
                rows=rows, parts=share // rows, predicted=predicted, available=available,
                failed=failed,
            )  # fmt: skip
        failed.append(rows)
    return MicroBatchChoice(rows=0, parts=0, available=available, failed=failed)


def _agreed(choice: MicroBatchChoice) -> MicroBatchChoice:
    """Return the choice of all processes together: the smallest micro-batch among them."""
    rows = choice.rows
    if world_size() > 1:
        from accelerate.utils import gather_object

        process_state()
        rows = min(gather_object([choice.rows]))
    if not rows:
        raise SoraError(
            "not even one row fits into memory",
            hint="training.gradient_checkpointing=true, or fewer tokens: data.max_length",
            key=_KEY,
        )
    parts = choice.parts * choice.rows // rows if choice.rows else 0
    return choice.model_copy(update={"rows": rows, "parts": parts})


def _with_parts(recipe: Recipe, parts: int) -> Recipe:
    block = recipe.training
    settled = block.model_copy(update={"micro_batch": None, "gradient_accumulation": parts})
    return recipe.model_copy(update={"training": settled})


def _described(choice: MicroBatchChoice) -> str:
    predicted = "" if choice.predicted is None else f"{size(choice.predicted)} predicted"
    free = "" if choice.available is None else f" of {size(choice.available)}"
    ran_out = f"; no memory for {', '.join(map(str, choice.failed))}" if choice.failed else ""
    return f"{choice.rows} rows, {choice.parts} per step ({predicted}{free}{ran_out})"


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore buffers (a batch norm's averages) and random numbers afterwards."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with forked_random():
            yield
    finally:
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.data.copy_(buffers[name])
        empty_cache()
