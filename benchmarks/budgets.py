"""Seconds of whole trainings to a budget, including the cut or the schedule, against plain LoRA's.

    python -m benchmarks.budgets [--model encoder decoder] [--steps 50] [--rounds 10] [--rank 8]

In every round each side trains from the start, and the sides take their steps in turns. A side's
figure is the sum of its steps, including the step with the cut (every layer is turned to its
singular basis). Ratios are taken round by round. `--quick` only shows that the program runs.
"""

from __future__ import annotations

import argparse

from benchmarks.measure import in_turns, machine, markdown, median, ratios, shown_ratio
from benchmarks.models import DECODER, ENCODER, Setting, setting
from benchmarks.sides import ALPHA, Side, ours
from methods.registry import create
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import emit, say
from sora_cli.core.device import device_type

_PLAIN = "LoRA"
_BUDGET = 0.15  # of the components


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", nargs="+", choices=(ENCODER, DECODER), default=[ENCODER, DECODER]
    )
    parser.add_argument("--steps", type=int, default=50, help="steps of each training")
    parser.add_argument("--rounds", type=int, default=10, help="trainings of each side")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="small batches, few steps")
    options = parser.parse_args()
    device = device_type()
    rounds, steps = (2, 4) if options.quick else (options.rounds, options.steps)
    if device == "cpu":
        keep_freed_memory()
    emit(f"{machine(device)}; {rounds} trainings of {steps} steps each, ratios with 90 % intervals")
    for model in options.model:
        where = setting(model, device, quick=options.quick)
        say(f"{where.title} ...")
        totals: dict[str, list[float]] = {}
        for _ in range(rounds):
            sides = _sides(where, options.rank, steps)
            times = in_turns({name: side.step for name, side in sides.items()}, steps)
            for name, figures in times.items():
                totals.setdefault(name, []).append(sum(figures))
        rows = [
            [name, f"{median(figures):.2f}", shown_ratio(ratios(figures, totals[_PLAIN]))]
            for name, figures in totals.items()
        ]
        emit(f"\n{where.title}, from r = {options.rank} to {_BUDGET:.0%} of the components\n")
        emit(markdown(("side", "s of a training, median", f"/ {_PLAIN}"), rows))


def _sides(where: Setting, rank: int, steps: int) -> dict[str, Side]:
    budget = {"r_max": rank, "target_r": _BUDGET * rank}
    methods = {
        _PLAIN: create("lora", alpha=ALPHA, r=rank),
        "LoRA, cut at 80 %": create("cut", alpha=ALPHA, **budget),
        "SoRA with a budget": create(
            "sora", alpha=ALPHA, threshold=None, gate_init="ones", **budget
        ),
    }
    return {name: ours(where, method, steps=steps) for name, method in methods.items()}


if __name__ == "__main__":
    main()
