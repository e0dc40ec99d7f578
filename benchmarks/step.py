"""Seconds of an optimiser step: ours against PEFT, a plain layer, and the floor.

    python -m benchmarks.step [--model encoder decoder] [--dropout 0 0.1] [--rank 8] [--rounds 30]

Who the sides are: `benchmarks/sides.py`. In every round each side takes one step, in random order;
ratios are taken round by round. Printed are medians, with quartiles of the times and 90 %
intervals of the ratios' medians. `--dropout` is that of the adapters; the models' own is 0.
All have the setting of the allocator that `sora train` makes (`sora_cli/train/machine.py`); it
serves every side alike, and `--system-allocator` leaves it out. `--precision bf16` takes the steps
under autocast. `--quick` shows that the program runs.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable

import torch

from benchmarks.measure import in_turns, machine, markdown, median, quartiles, ratios, shown_ratio
from benchmarks.models import DECODER, ENCODER, setting
from benchmarks.sides import ALL, PEER, Side, make
from sora_cli.core.console import emit, say
from sora_cli.train.machine import keep_freed_memory

_WARM_UP = 3
_HEADER = ("side", "ms, median (quartiles)", "/ floor", "/ peer")


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
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--system-allocator", action="store_true", help="freed memory goes back to the system"
    )
    parser.add_argument("--quick", action="store_true", help="small batches, two rounds")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
                {name: _step(side, options.precision) for name, side in sides.items()},
                rounds + _WARM_UP,
            )
            title = f"{where.title}, r = {options.rank}, dropout {dropout:g}, {options.precision}"
            emit(f"\n{title}\n")
            emit(markdown(_HEADER, _rows({n: t[_WARM_UP:] for n, t in times.items()})))


def _step(side: Side, precision: str) -> Callable[[], float]:
    def step() -> float:
        context = (
            torch.autocast(side.where.device, dtype=torch.bfloat16)
            if precision == "bf16"
            else contextlib.nullcontext()
        )
        with context:
            return side.step()

    return step


def _rows(times: dict[str, list[float]]) -> list[list[str]]:
    rows = []
    for name, figures in times.items():
        low, high = quartiles(figures)
        peer = PEER.get(name)
        rows.append(
            [
                name,
                f"{1e3 * median(figures):.0f} ({1e3 * low:.0f} to {1e3 * high:.0f})",
                shown_ratio(ratios(figures, times["floor"])) if "floor" in times else "",
                f"{peer}: {shown_ratio(ratios(figures, times[peer]))}" if peer in times else "",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
