"""All figures of a GPU: steps against PEFT and the floor, tokens/s, memory, launches, gradients.

    python -m benchmarks.gpu [--minutes 9] [--models 135M 1.2B 8B] [--rows TITLE ...] [--tiny]

Needs this checkout with PEFT, and bitsandbytes for rows with a 4-bit base; no Hub. The models have
random weights, in the shapes of SmolLM2-135M, Llama-3.2-1B and Llama-3-8B. A row of the table is
one recipe of `sora train` with the overrides in the row's title. The sides are described in
`benchmarks/gpu/sides.py`, the check of gradients in `benchmarks/gpu/check.py`. In every round each
side takes one step, in random order; ratios are taken round by round. Printed are medians with 90 %
intervals of the ratios. Rows that do not fit into the minutes or into memory are listed. Without a
GPU, or with `--tiny`, all rows run on a model of two small layers.

Exit code 1: wrong gradients, or a row that failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if __name__ == "__main__":  # a program that only imports this keeps its own
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")

import torch

from benchmarks.gpu.check import FAR
from benchmarks.gpu.measured import Measured, measure, release
from benchmarks.gpu.rows import ROWS, Row, rows_for
from benchmarks.gpu.shapes import SHAPES, TINY, Shape, write
from benchmarks.gpu.tables import launch_table, step_table
from benchmarks.measure import machine
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import emit, say
from sora_cli.core.device import device_type, is_cuda
from sora_cli.core.errors import SoraError, first_line

_PACKAGES = ("transformers", "peft", "bitsandbytes")
_STARTING = 30.0  # seconds of imports before `main`, counted as used


@dataclass
class Budget:
    """The remaining time, and the rows without figures.

    Attributes:
        dropped: rows that were not reached. skipped: rows that cannot run here, with reasons.
        failed: rows with unexpected errors.
    """

    minutes: float
    began: float = field(default_factory=time.perf_counter)
    dropped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def left(self, share: float) -> float:
        """Return the seconds left until a share of all minutes has passed."""
        return share * (60 * self.minutes - _STARTING) - (time.perf_counter() - self.began)


def main() -> int:
    """Measure and print."""
    options = _options()
    device = device_type()
    tiny = options.tiny or device == "cpu"
    shapes = [TINY] if tiny else [shape for shape in SHAPES if shape.name in options.models]
    budget = Budget(options.minutes)
    if device == "cpu":
        keep_freed_memory()
    _introduce(device, tiny)
    wrong = False
    with tempfile.TemporaryDirectory(prefix="sora-gpu-") as folder:
        for shape in shapes:
            rows = rows_for(shape, options.rows)
            measured = _measure_model(shape, rows, Path(folder), device, options.rounds, budget)
            wrong |= any(row.verdict is not None and not row.verdict.right for row in measured)
    for what, lines in (
        ("Not reached within the minutes", budget.dropped),
        ("Skipped", budget.skipped),
        ("Failed", budget.failed),
    ):
        emit("".join([f"\n{what}:", *(f"\n- {line}" for line in lines or ["nothing"])]))
    return int(wrong or bool(budget.failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="rows not reached by then are dropped"
    )
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    titles = [row.title for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=titles, default=[], help="default: all")
    parser.add_argument("--rounds", type=int, default=20, help="largest number for a row")
    parser.add_argument("--tiny", action="store_true", help="a tiny model (always without a GPU)")
    return parser.parse_args()


def _introduce(device: str, tiny: bool) -> None:
    known = [f"{name} {_version(name)}" for name in _PACKAGES]
    if is_cuda():
        room = torch.cuda.get_device_properties(0).total_memory / 1e9
        known = [f"{room:.0f} GB", f"CUDA {torch.version.cuda}", *known]
    emit(f"{machine(device)}, {', '.join(known)}")
    if tiny:
        emit("A tiny model: the figures only show that the program runs.")
    emit(
        "Ratios are medians with 90 % intervals. Gradients: the cosine between the adapters' "
        "gradients and the plain path's in float32 (in brackets: the cosine of the plain path in "
        f"the row's precision). They are right if |difference| is at most {FAR:.3f} of the norm "
        "(cosine 0.9999), or in bf16 at most twice the plain path's."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _measure_model(
    shape: Shape, rows: list[Row], folder: Path, device: str, rounds: int, budget: Budget
) -> list[Measured]:
    """Measure and print the rows of a model until its time is over."""
    measured, longest = [], 10 * shape.billions
    if budget.left(shape.share) < longest:
        budget.dropped += [_named(shape, row) for row in rows]
        return []
    say(f"{shape.name}: writing it ...")
    try:
        recipe = write(shape, folder / shape.name, device)
    except (SoraError, torch.OutOfMemoryError) as error:
        budget.skipped.append(f"{shape.name}: {first_line(error)}")
        return []
    finally:
        release()
    for row in rows:
        if budget.left(shape.share) < longest:  # it may take as long as the longest row so far
            budget.dropped.append(_named(shape, row))
            continue
        began = time.perf_counter()
        say(f"{_named(shape, row)} ...")
        one = _measure_row(shape, row, recipe, device, rounds, budget)
        measured += [one] if one else []
        longest = max(longest, time.perf_counter() - began)
    emit(f"\n## {shape.name}, {shape.rows} x {shape.length} tokens, r = 16 on all linears\n")
    emit(step_table(measured))
    emit(f"\n{launch_table(measured)}")
    return measured


def _measure_row(
    shape: Shape, row: Row, recipe: Path, device: str, rounds: int, budget: Budget
) -> Measured | None:
    """Measure a row; record the reason if it cannot be measured."""
    limit = 2.0 if device == "cpu" else 8.0
    try:
        return measure(row, recipe, device, rounds=rounds, limit=limit)
    except (SoraError, torch.OutOfMemoryError) as error:
        budget.skipped.append(f"{_named(shape, row)}: {first_line(error)}")
    except Exception as error:  # a failed row must not stop the rows after it
        what = f"{type(error).__name__}: {first_line(error)}"
        budget.failed.append(f"{_named(shape, row)}: {what}")
    return None


def _named(shape: Shape, row: Row) -> str:
    words = f" ({' '.join(row.words)})" if row.words else ""
    return f"{shape.name}, {row.title}{words}"


if __name__ == "__main__":
    sys.exit(main())
