"""Measures one row: checks and prepares its recipe like `sora train`, then steps its sides."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu.check import Verdict, check
from benchmarks.gpu.launches import Launches, launches_of
from benchmarks.gpu.rows import Row
from benchmarks.gpu.sides import OURS, Side, sides_of
from benchmarks.measure import in_turns
from sora_cli.core.device import empty_cache
from sora_cli.recipe.load import load_recipe
from sora_cli.run.preflight import check_recipe
from sora_cli.run.prepare import prepare

_WARM_UP = 3  # the first steps compile kernels, draw moments and fill the allocator's pools
_FEWEST = 5  # rounds: with fewer no interval has a confidence of 90 %


@dataclass
class Measured:
    """The figures of a row, by side.

    Attributes:
        tokens: number in the batch, without padding.
        lost: sides that ran out of memory.
        verdict: on the gradients; None if the check ran out of memory.
    """

    row: Row
    tokens: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    launches: dict[str, Launches] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    verdict: Verdict | None = None


def measure(row: Row, recipe_file: Path, device: str, *, rounds: int, limit: float) -> Measured:
    """Measure a row.

    Args:
        rounds: largest number of rounds.
        limit: seconds; slow rows take fewer rounds, but at least 5.
    """
    words = list(row.words)
    if row.short:
        words.append(f"data.files.train={recipe_file.parent / 'short.jsonl'}")
    recipe = load_recipe(recipe_file, words).recipe
    check_recipe(recipe)
    try:
        ready = prepare(recipe, lambda _: contextlib.nullcontext())
        with sides_of(recipe, ready, device) as sides:
            del ready
            return _measure_sides(row, sides, rounds, limit)
    finally:
        release()


def release() -> None:
    """Free unused memory, also of torch's GPU allocator."""
    gc.collect()
    empty_cache()


def _measure_sides(row: Row, sides: dict[str, Side], rounds: int, limit: float) -> Measured:
    batch = next(iter(sides.values())).batch
    masked = batch.get("attention_mask")
    tokens = batch["input_ids"].numel() if masked is None else int(masked.sum())
    measured = Measured(row, tokens)
    measured.lost = [name for name in [*sides] if not _warm(sides[name])]
    for name in measured.lost:
        del sides[name]
    release()
    round_seconds = sum(side.step() for side in sides.values())
    number = min(rounds, max(_FEWEST, int(limit / round_seconds)))
    measured.seconds = in_turns({name: side.step for name, side in sides.items()}, number)
    measured.peaks = {name: side.peak_bytes() for name, side in sides.items()}
    profiled = {name: launches_of(side) for name, side in sides.items()}
    measured.launches = {name: one for name, one in profiled.items() if one is not None}
    ours = sides.get(OURS)
    sides.clear()  # the check needs the room
    release()
    if ours is not None:
        with _memory_may_end():
            measured.verdict = check(ours)
    return measured


def _warm(side: Side) -> bool:
    """Take the first steps; return False if memory does not suffice."""
    done = False
    with _memory_may_end():
        for _ in range(_WARM_UP):
            side.step()
        done = True
    if not done:
        side.model.zero_grad(set_to_none=True)
        release()
    return done


@contextlib.contextmanager
def _memory_may_end() -> Iterator[None]:
    """Suppress a GPU's out-of-memory error; the traceback's end frees the block's tensors."""
    with contextlib.suppress(torch.OutOfMemoryError):
        yield
