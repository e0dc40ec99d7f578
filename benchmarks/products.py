"""Milliseconds of the products in an adapted layer's step, by torch's default and by oneDNN.

    python -m benchmarks.products [--rows 4096] [--ranks 1 3 8 16] [--rounds 15]

`methods/products.py` uses oneDNN on AMD processors; this measures both libraries here. They run in
turns, in float32, each after a pass over other memory, as in a step. The widths are MiniLM-L6's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.measure import in_turns, machine, markdown, median, ratios, shown_ratio
from methods.products import prefers_onednn
from methods.torch_internals import onednn_linear
from sora_cli.core.console import emit

_WARM_UP = 2
_WIDTHS = (384, 1536)
_ELSEWHERE = 1 << 24  # entries changed between products, 64 MB, to clear the caches


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 3, 8, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few rows, two rounds")
    options = parser.parse_args()
    rows, rounds = (256, 2) if options.quick else (options.rows, options.rounds)
    taken = "oneDNN" if prefers_onednn() else "torch's own"
    emit(f"{machine('cpu')}; medians of {rounds} rounds, {rows} rows; taken here: {taken}\n")
    table = []
    for wide in _WIDTHS:
        x = torch.randn(rows, wide)
        W = torch.randn(_WIDTHS[0], wide)
        table.append(_measure(f"x W^T, W {_WIDTHS[0]} x {wide}", x, W, rounds))
        for rank in options.ranks:
            A, v = torch.randn(rank, wide), torch.randn(rank, rows)
            table.append(_measure(f"A x^T, A {rank} x {wide}", A, x, rounds))
            table.append(_measure(f"v x, v {rank} x {rows}, x {rows} x {wide}", v, x.t(), rounds))
    emit(markdown(("product", "torch's own, ms", "oneDNN, ms", "oneDNN / torch's own"), table))


def _measure(name: str, a: Tensor, b: Tensor, rounds: int) -> list[str]:
    elsewhere = torch.zeros(_ELSEWHERE)

    def timed(multiply: Callable[[], Tensor]) -> Callable[[], float]:
        def once() -> float:
            elsewhere.add_(1)  # evicts a and b from the caches
            start = time.perf_counter()
            multiply()
            return 1e3 * (time.perf_counter() - start)

        return once

    times = in_turns(
        {"own": timed(lambda: linear(a, b)), "onednn": timed(lambda: onednn_linear(a, b, None))},
        rounds + _WARM_UP,
    )
    own, onednn = (times[side][_WARM_UP:] for side in ("own", "onednn"))
    return [name, f"{median(own):.2f}", f"{median(onednn):.2f}", shown_ratio(ratios(onednn, own))]


if __name__ == "__main__":
    main()
