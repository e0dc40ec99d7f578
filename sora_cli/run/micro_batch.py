"""The largest micro-batch that fits into memory (`training.micro_batch: auto`).

Of the sizes that split a step's rows evenly, the largest whose predicted peak (`run/memory`) leaves
a tenth of the memory free is tried once: the passes of a step over the longest training rows, with
AdamW's moments reserved. Where memory runs out, the next size of at most half the rows is tried.
Of several processes all take the smallest that any of them found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from sora_cli.core.console import say, size
from sora_cli.core.environment import free_memory
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import world_size
from sora_cli.recipe.recipe import Recipe, TrainingBlock
from sora_cli.report import MicroBatchChoice
from sora_cli.run.memory import longest_rows, predict_memory, resident_memory
from sora_cli.run.prepare import Prepared
from sora_cli.run.step_time import run_passes
from sora_cli.train.optimizers import moment_bytes

_SHARE = 0.9
"""The part of the memory that a prediction may fill: predictions are some per cent off."""
_KEY = "training.micro_batch"
_NO_MEMORY = ("can't allocate memory", "out of memory")  # of torch on a CPU, and of CUDA's drivers


def available_memory() -> float | None:
    """Return the bytes that a run may take in all, with those it has; None if not known."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return float(free + torch.cuda.memory_reserved())
    free_bytes = free_memory()
    return None if free_bytes is None else free_bytes / world_size() + resident_memory()


def predicted_peak(ready: Prepared, recipe: Recipe, rows: int) -> float:
    """Return the bytes that training with micro-batches of so many rows takes at most."""
    return predict_memory(ready, recipe, rows_per_pass=rows).training_peak


def step_fits(ready: Prepared, block: TrainingBlock, rows: int) -> bool:
    """Take the passes of a step over the longest rows; return whether the memory was enough.

    The model, its gradients and torch's random numbers are afterwards as they were before.
    """
    part = longest_rows(ready.train, rows)
    batch = ready.task.collator(ready.base.processor)(list(part.dataset))
    model: nn.Module = ready.base.model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    passes = 2 if block.gradient_accumulation > 1 else 1  # the second finds gradients
    try:
        with _left_as_it_was(model):
            taken = moment_bytes(block.optimizer, model, device)
            moments = torch.empty(taken, dtype=torch.uint8, device=device)
            run_passes(ready, block, batch, passes)
            del moments
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_MEMORY):
            raise
        return False
    return True


@dataclass(frozen=True)
class Machine:
    """The machine, as far as the choice asks it.

    Attributes:
        available: bytes that the run may take; None if not known.
        predict: bytes that training takes with micro-batches of so many rows.
        fits: whether a step of such micro-batches can be taken.
    """

    available: Callable[[], float | None] = available_memory
    predict: Callable[[Prepared, Recipe, int], float] = predicted_peak
    fits: Callable[[Prepared, TrainingBlock, int], bool] = step_fits


PREDICTION_ONLY = Machine(fits=lambda *_: True)
"""For a dry run, which takes no step."""


def settle(
    recipe: Recipe, ready: Prepared, *, stored: int | None = None, machine: Machine | None = None
) -> tuple[Recipe, MicroBatchChoice | None]:
    """Return the recipe with `gradient_accumulation` set, and what was chosen; None if not asked.

    Args:
        ready: right after it was prepared.
        stored: rows of a micro-batch of the run that is resumed.

    Raises:
        SoraError: not even one row fits, the stored rows do not split over these processes, or the
            task's loss depends on the micro-batches.
    """
    if recipe.training.micro_batch is None:
        return recipe, None
    if not ready.task.rows_apart:
        raise SoraError(
            f"the loss of {ready.task.name} compares the rows of a micro-batch with each other: "
            "their number is no matter of memory alone",
            hint="training.micro_batch=null",
            key=_KEY,
        )
    share = recipe.training.batch_size // world_size()
    if stored is None:
        chosen = _agreed(_find(recipe, ready, share, machine or Machine()))
        say(f"micro-batch: {_described(chosen)}")
    elif share % stored:
        raise SoraError(
            f"the run's micro-batches of {stored} rows do not split {share} rows a process",
            hint="resume it with as many processes as it was started with",
            key=_KEY,
        )
    else:
        chosen = MicroBatchChoice(rows=stored, parts=share // stored)
    return _with_parts(recipe, chosen.parts), chosen


def _find(recipe: Recipe, ready: Prepared, share: int, machine: Machine) -> MicroBatchChoice:
    """Return the largest that fits here; of 0 rows if none does."""
    available, failed = machine.available(), list[int]()
    for rows in (n for n in range(share, 0, -1) if share % n == 0):
        if failed and rows > failed[-1] // 2 and rows > 1:
            continue
        split = _with_parts(recipe, share // rows)
        predicted = machine.predict(ready, split, rows)
        # a single row is tried whatever is predicted
        if available is not None and predicted > _SHARE * available and rows > 1:
            continue
        if machine.fits(ready, split.training, rows):
            return MicroBatchChoice(
                rows=rows, parts=share // rows, predicted=predicted, available=available,
                failed=failed,
            )  # fmt: skip
        failed.append(rows)
    return MicroBatchChoice(rows=0, parts=0, available=available, failed=failed)


def _agreed(found: MicroBatchChoice) -> MicroBatchChoice:
    """Return what all processes take: the smallest of what each of them found."""
    rows = found.rows
    if world_size() > 1:
        from accelerate import PartialState
        from accelerate.utils import gather_object

        PartialState(cpu=not torch.cuda.is_available())
        rows = min(gather_object([found.rows]))
    if not rows:
        raise SoraError(
            "not even one row a forward pass fits into memory",
            hint="training.gradient_checkpointing=true, or fewer tokens: data.max_length",
            key=_KEY,
        )
    parts = found.parts * found.rows // rows if found.rows else 0
    return found.model_copy(update={"rows": rows, "parts": parts})


def _with_parts(recipe: Recipe, parts: int) -> Recipe:
    block = recipe.training
    settled = block.model_copy(update={"micro_batch": None, "gradient_accumulation": parts})
    return recipe.model_copy(update={"training": settled})


def _described(found: MicroBatchChoice) -> str:
    taken = "" if found.predicted is None else f"{size(found.predicted)} predicted"
    free = "" if found.available is None else f" of {size(found.available)}"
    ran_out = f"; no memory for {', '.join(map(str, found.failed))}" if found.failed else ""
    return f"{found.rows} rows, {found.parts} to a step ({taken}{free}{ran_out})"


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put buffers (a batch norm's averages) and random numbers back."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.data.copy_(buffers[name])
        if devices:
            torch.cuda.empty_cache()
