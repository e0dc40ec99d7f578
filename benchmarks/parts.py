"""Milliseconds of an optimiser step by part: the products, attention, norms, and so on.

    python -m benchmarks.parts [--model encoder decoder] [--sides floor LoRA] [--rank 8] [--steps 5]

torch's profiler counts the time of every operation, without those that it calls, in steps that are
taken in turns by the sides of `benchmarks/sides.py`. Printed are medians over the steps. A product
belongs to the factors if one of its sizes is the rank (or that of siblings that read one input), to
the output layer if one is the vocabulary's, and to the frozen layers otherwise. The last line is
the time in which no operation ran: Python, autograd's own work, and the profiler. Profiled steps
are slower than others: compare parts, and take seconds from `benchmarks.step`. On a busy machine
nothing here means anything.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import in_turns, machine, markdown, median
from benchmarks.models import DECODER, ENCODER, setting
from benchmarks.sides import ALL, Side, make
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import emit, say

_WARM_UP = 3
_SIBLINGS = 3  # query, key and value read one input, so their factors are multiplied as one
_FACTORS, _OUTPUT, _FROZEN = "products of the factors", "output layer", "products of frozen layers"
_OUTSIDE = "outside of operations"
_PARTS = {
    "scaled_dot_product": "attention",
    "norm": "norms and activations",
    "gelu": "norms and activations",
    "silu": "norms and activations",
    "rsqrt": "norms and activations",
    "embedding": "embedding",
    "index": "embedding",
    "softmax": "loss",
    "nll_loss": "loss",
    "adamw": "optimiser",
    "dropout": "dropout",
    "bernoulli": "dropout",
}
"""Parts by a word in an operation's name."""
_PRODUCTS = ("mm", "matmul", "linear")
_OTHER = "copies, sums and other operations"
_ORDER = (_FROZEN, _FACTORS, _OUTPUT, *dict.fromkeys(_PARTS.values()), _OTHER, _OUTSIDE)


Parts = defaultdict[str, float]
"""Milliseconds by part."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", nargs="+", choices=(ENCODER, DECODER), default=[ENCODER, DECODER]
    )
    parser.add_argument("--sides", nargs="+", choices=ALL, default=["floor", "LoRA"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small batches, two steps")
    options = parser.parse_args()
    keep_freed_memory()
    steps = 2 if options.quick else options.steps
    emit(f"{machine('cpu')}; medians of {steps} steps")
    for model in options.model:
        where = setting(model, "cpu", quick=options.quick)
        say(f"{where.title} ...")
        taken: dict[str, list[Parts]] = {}
        work = {}
        for name in options.sides:
            side = make(name, where, rank=options.rank, dropout=options.dropout)
            for _ in range(_WARM_UP):
                side.step()
            taken[name] = []
            work[name] = _Profiled(side, options.rank, taken[name]).step
        in_turns(work, steps)
        emit(f"\n{where.title}, r = {options.rank}, dropout {options.dropout:g}\n")
        emit(markdown(("ms of a step", *options.sides), _rows(taken)))


class _Profiled:
    """A side whose steps are profiled."""

    def __init__(self, side: Side, rank: int, taken: list[Parts]) -> None:
        self.side, self.taken = side, taken
        self.ranks = {rank, _SIBLINGS * rank}
        model: Any = side.model
        self.words = model.config.vocab_size

    def step(self) -> float:
        """Take a step, and keep its milliseconds by part."""
        parts: Parts = defaultdict(float)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            start = time.perf_counter()
            self.side.step()
            seconds = time.perf_counter() - start
        for operation in profiler.key_averages(group_by_input_shape=True):
            if operation.key.startswith("aten::") or operation.key.startswith("mkldnn::"):
                part = self._part(operation.key, operation.input_shapes)
                parts[part] += operation.self_cpu_time_total / 1e3
        parts[_OUTSIDE] = 1e3 * seconds - sum(parts.values())
        self.taken.append(parts)
        return seconds

    def _part(self, name: str, shapes: Sequence[Sequence[int]]) -> str:
        if any(word in name for word in _PRODUCTS):
            sizes = {size for shape in shapes for size in shape}
            if sizes & self.ranks:
                return _FACTORS
            return _OUTPUT if self.words in sizes else _FROZEN
        return next((part for word, part in _PARTS.items() if word in name), _OTHER)


def _rows(taken: Mapping[str, Sequence[Parts]]) -> list[list[str]]:
    """Return a row for each part that takes time, and their sum."""
    sides = {
        name: {part: median([step[part] for step in steps]) for part in _ORDER}
        for name, steps in taken.items()
    }
    rows = [
        [part, *(f"{parts[part]:.0f}" for parts in sides.values())]
        for part in _ORDER
        if any(parts[part] >= 0.5 for parts in sides.values())
    ]
    return [*rows, ["all", *(f"{sum(parts.values()):.0f}" for parts in sides.values())]]


if __name__ == "__main__":
    main()
