"""Peak memory of training above the loaded model: ours against PEFT, a plain layer, the floor.

    python -m benchmarks.memory [--model encoder decoder] [--dropout 0 0.1] [--rounds 3]

Every side runs in a process of its own: it loads the model, takes a step on a batch of one row (so
that libraries and the optimiser have allocated their permanent memory), then three steps on the
real batch.

- "resident": on a CPU the process's largest resident set (VmHWM, reset before the three steps)
  minus its resident set before them; on a GPU the same difference of the allocator's figures.
- "tensors": the largest sum of living tensors during one step, without those that existed before
  it, counted by the shapes that operations return. Allocators and kernels' workspaces are not
  included.

Printed are medians over the rounds, and ratios to the floor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measure import in_turns, machine, markdown, median
from benchmarks.models import DECODER, ENCODER, Setting, setting
from benchmarks.sides import ALL, Side, make
from benchmarks.stepping import Stepping
from sora_cli.core.console import emit, say
from sora_cli.core.device import device_module, device_type
from sora_cli.core.environment import process_memory
from sora_cli.run.memory_trace import StorageTracker

_STEPS = 3


def main() -> None:
    """Measure and print; with `--measure SIDE` only one side, in this process, as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", nargs="+", choices=(ENCODER, DECODER), default=[ENCODER, DECODER]
    )
    parser.add_argument("--dropout", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--quick", action="store_true", help="small batches, one round")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = device_type()
    if options.measure:
        where = setting(options.model[0], device, quick=options.quick)
        side = make(options.measure, where, rank=options.rank, dropout=options.dropout[0])
        emit(json.dumps(measure(side)))
        return
    rounds = 1 if options.quick else options.rounds
    emit(f"{machine(device)}; medians of {rounds} rounds in turns")
    for model in options.model:
        for dropout in options.dropout:
            where = setting(model, device, quick=options.quick)
            say(f"{where.title}, dropout {dropout:g} ...")
            emit(f"\n{where.title}, r = {options.rank}, dropout {dropout:g}, fp32\n")
            emit(_table(where, dropout, rounds, options))


def measure(side: Side) -> dict[str, float]:
    """Return the peak memory of a newly made side, in bytes."""
    full, side.batch = side.batch, {name: t[:1] for name, t in side.batch.items()}
    side.step()
    side.batch = full
    before = _reset(side.where)
    for _ in range(_STEPS):
        side.step()
    return {"resident": _peak(side.where) - before, "tensors": tensors(side)}


def tensors(side: Stepping) -> float:
    """Return the largest sum of living tensors in a step, without those before it, in bytes."""
    state = side.optimizer.state.values() if side.optimizer else ()
    known = [t for entry in state for t in entry.values() if isinstance(t, torch.Tensor)]
    known += [*side.model.parameters(), *side.model.buffers(), *side.batch.values()]
    with StorageTracker(known) as tracker:
        side.step()
    return float(tracker.peak)


def _reset(where: Setting) -> float:
    if where.device != "cpu":
        device_module().reset_peak_memory_stats()
        return float(device_module().memory_allocated())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM becomes VmRSS
    return float(process_memory("VmRSS") or 0)


def _peak(where: Setting) -> float:
    if where.device != "cpu":
        return float(device_module().max_memory_allocated())
    return float(process_memory("VmHWM") or 0)


def _table(where: Setting, dropout: float, rounds: int, options: argparse.Namespace) -> str:
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in options.sides}

    def run(name: str) -> float:
        command = [
            *(sys.executable, "-m", "benchmarks.memory", "--measure", name),
            *("--model", where.model, "--dropout", str(dropout), "--rank", str(options.rank)),
            *(["--quick"] if options.quick else []),
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured[name].append(json.loads(done.stdout.splitlines()[-1]))
        return 0.0

    in_turns({name: (lambda name=name: run(name)) for name in options.sides}, rounds)  # type: ignore[misc]
    rows = []
    for name, runs in measured.items():
        row = [name]
        for kind in ("resident", "tensors"):
            mine = median([figures[kind] for figures in runs])
            row.append(f"{mine / 1e6:.0f} MB")
            if "floor" in measured:
                row.append(f"{mine / median([figures[kind] for figures in measured['floor']]):.2f}")
        rows.append(row)
    return markdown(("side", "resident", "/ floor", "tensors", "/ floor"), rows)


if __name__ == "__main__":
    main()
