"""Seconds of an optimiser step: ours against PEFT, a plain layer, and the floor.

    python -m benchmarks.step [--model encoder decoder] [--dropout 0 0.1] [--rank 8] [--rounds 30]

`benchmarks/sides.py` describes the sides. In every round each side takes one step, in random order;
ratios are taken round by round. Printed are medians, with quartiles of the times and 90 % intervals
of the ratios' medians. `--dropout` is the adapters'; the models' own dropout is 0.
All sides use the allocator's setting of `sora train` (`sora_cli/core/allocator.py`), which helps
every side alike; `--system-allocator` leaves it out. `--precision bf16` runs the forward passes
under autocast, as in training; `--precision fp32 bf16` runs each side in both precisions, in turns,
and adds their ratio.
`--processor-time` counts processor seconds instead of wall seconds, for a busy machine; use it with
OMP_NUM_THREADS=1, because threads that wait for each other count as well. `--quick` only shows that
the program runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from benchmarks.measure import in_turns, machine, markdown, median, quartiles, ratios, shown_ratio
from benchmarks.models import DECODER, ENCODER, setting
from benchmarks.sides import ALL, PEER, Side, make
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import emit, say
from sora_cli.core.device import device_type

_WARM_UP = 3  # steps that are not counted: the first ones allocate the optimiser's moments
_HEADER = ("side", "ms, median (quartiles)", "/ floor", "/ peer", "/ fp32")
_PRECISIONS = ("fp32", "bf16")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", nargs="+", choices=(ENCODER, DECODER), default=[ENCODER, DECODER]
    )
    parser.add_argument("--dropout", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sides", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--precision", nargs="+", choices=_PRECISIONS, default=["fp32"])
    parser.add_argument(
        "--system-allocator", action="store_true", help="return freed memory to the system"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="processor seconds instead of wall seconds"
    )
    parser.add_argument("--quick", action="store_true", help="small batches, two rounds")
    options = parser.parse_args()
    device = device_type()
    rounds = 2 if options.quick else options.rounds
    if device == "cpu" and not options.system_allocator:
        keep_freed_memory()
    emit(f"{machine(device)}; medians of {rounds} rounds, ratios with 90 % intervals")
    for model in options.model:
        where = setting(model, device, quick=options.quick)
        for dropout in options.dropout:
            say(f"{where.title}, dropout {dropout:g} ...")
            sides = {
                name: make(name, where, rank=options.rank, dropout=dropout)
                for name in options.sides
            }
            times = in_turns(
                {
                    f"{name}, {precision}": _step(side, precision, processor=options.processor_time)
                    for name, side in sides.items()
                    for precision in options.precision
                },
                rounds + _WARM_UP,
            )
            precisions = " and ".join(options.precision)
            emit(f"\n{where.title}, r = {options.rank}, dropout {dropout:g}, {precisions}\n")
            emit(markdown(_HEADER, _rows({n: t[_WARM_UP:] for n, t in times.items()})))


def _step(side: Side, precision: str, *, processor: bool) -> Callable[[], float]:
    def step() -> float:
        side.precision = precision
        return side.step()

    if processor:
        side.clock = time.process_time
    return step


def _rows(times: dict[str, list[float]]) -> list[list[str]]:
    rows = []
    several = len({side.partition(", ")[2] for side in times}) > 1
    for side, figures in times.items():
        name, _, precision = side.partition(", ")
        low, high = quartiles(figures)
        floor, full = times.get(f"floor, {precision}"), times.get(f"{name}, fp32")
        peer = times.get(f"{PEER.get(name)}, {precision}")
        rows.append(
            [
                side if several else name,
                f"{1e3 * median(figures):.0f} ({1e3 * low:.0f} to {1e3 * high:.0f})",
                shown_ratio(ratios(figures, floor)) if floor else "",
                f"{PEER[name]}: {shown_ratio(ratios(figures, peer))}" if peer else "",
                shown_ratio(ratios(figures, full)) if full and several else "",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
