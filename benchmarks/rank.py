"""Cost of the rank, and gain from `training.compact_every`, at r_max 64 and 128.

    python -m benchmarks.rank [--ranks 64 128] [--rounds 10] [--every 25] [--epochs 4]

1. Seconds of a SoRA step on MiniLM-L6 (batch 32, sequence 128) with all components in place, and
   with half and nine tenths of them removed, against the floor; in turns.
2. Whole runs of `recipes/quickstart.yaml` with SoRA and a threshold under which most gates die.
   One run without compaction counts the components that it would remove, and how many of them come
   back; one run compacts. Printed are seconds of training, accuracy, components.

`--quick` takes small batches and few steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import in_turns, machine, markdown, median, ratios, shown_ratio
from benchmarks.models import ENCODER, Setting, setting
from benchmarks.sides import Side, make, method, ours
from methods.compaction import remove_components
from methods.inject import adapted_layers
from sora_cli.core.console import emit, say
from sora_cli.core.device import device_type
from sora_cli.report import FILE_NAME, load_report

_WARM_UP = 2
_SHARES = {"none removed": 0.0, "half removed": 0.5, "nine tenths removed": 0.9}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--every", type=int, default=25, help="training.compact_every")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the whole runs")
    parser.add_argument("--threshold", type=float, default=3e-3)
    parser.add_argument("--quick", action="store_true", help="small batches, few steps")
    options = parser.parse_args()
    device = device_type()
    rounds = 2 if options.quick else options.rounds
    emit(f"{machine(device)}; medians of {rounds} rounds, ratios with 90 % intervals")
    where = setting(ENCODER, device, quick=options.quick)
    for rank in options.ranks:
        say(f"steps at r_max {rank} ...")
        emit(f"\n{where.title}, r_max {rank}\n\n{_steps(where, rank, rounds)}")
    rows = []
    for rank in options.ranks:
        for compacts in (False, True):
            say(f"a run at r_max {rank}, {'with' if compacts else 'without'} compaction ...")
            rows.append(_run(rank, options, compacts=compacts))
    header = ("r_max", "compaction", "s of training", "accuracy", "alive", "removed", "come back")
    emit(f"\nquickstart, threshold {options.threshold:g}, every {options.every} steps\n")
    emit(markdown(header, rows))


def _steps(where: Setting, rank: int, rounds: int) -> str:
    sides = {"floor": make("floor", where, rank=rank, dropout=0.0)}
    for name, share in _SHARES.items():
        sides[name] = _without(ours(where, method("SoRA", rank=rank)), share)
    times = in_turns({name: side.step for name, side in sides.items()}, rounds + _WARM_UP)
    times = {name: figures[_WARM_UP:] for name, figures in times.items()}
    rows = [
        [
            name,
            f"{1e3 * median(figures):.0f}",
            shown_ratio(ratios(figures, times["floor"])),
            shown_ratio(ratios(figures, times["none removed"])),
        ]
        for name, figures in times.items()
    ]
    return markdown(("SoRA", "ms", "/ floor", "/ none removed"), rows)


def _without(side: Side, share: float) -> Side:
    """Take a step, and remove a share of the side's components."""
    side.step()
    layers = adapted_layers(side.model)
    total = sum(layer.rank for layer in layers.values())
    gone = torch.rand(total, generator=torch.Generator().manual_seed(0)) < share
    if share:
        assert side.optimizer is not None
        remove_components(layers, gone, side.optimizer.state)
        # the method's hook expects the old ranks; its time is negligible
        side.after = lambda _: None
    return side


def _run(rank: int, options: argparse.Namespace, *, compacts: bool) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as output:
        command = [
            *(sys.executable, "-m", "sora_cli", "train", "recipes/quickstart.yaml", "--no-verify"),
            *("--force", f"output.dir={output}/run", "method.name=sora", "method.target_r=null"),
            f"method.r_max={rank}",
            *(f"method.threshold={options.threshold}", f"training.compact_every={options.every}"),
            f"training.epochs={options.epochs}",
            *([] if compacts else ["training.compact_only_count=true"]),
            *(["training.max_steps=4", "data.max_validation_rows=50"] if options.quick else []),
        ]
        subprocess.run(command, check=True, capture_output=True)
        report = load_report(Path(output, "run", FILE_NAME))
    record = report.compaction
    assert record is not None  # training.compact_every is set above
    metrics = next(iter(report.metrics.values()))
    returned = record.would_have_revived
    return [
        str(rank),
        f"every {record.every}" if compacts else "counted only",
        f"{report.seconds['train']:.0f}",
        f"{metrics[report.main_metric or '']:.4f}",
        str(report.live_components[-1]),
        str(record.removed),
        "not known" if returned is None else str(returned),
    ]


if __name__ == "__main__":
    main()
