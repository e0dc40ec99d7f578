"""`sora inspect` against dense SVDs, and its time and memory on a 7B-class adapter.

    python -m benchmarks.inspect [--quick] [--rounds N] [--threads N]

Two measurements on a synthetic bf16 adapter (32 layers x 7 modules of Llama 2 7B's shapes, r = 64):

1. Singular values of single modules, one per shape: from the factors (Cholesky of their Gram
   matrices and an r x r SVD) against `torch.linalg.svdvals` of the dense product, both float64,
   both from factors in memory, in turns in one process. Medians over the rounds. For the whole
   adapter each side's median is multiplied by the number of modules of that shape; reading files
   is not included. Both have one thread, because more threads are slower on busy cores;
   `--threads` gives the dense side more.
2. The command in a process of its own, `python -m sora_cli inspect DIR --json`: wall and processor
   time with all imports, largest RssAnon (sampled; the process's own memory) and largest resident
   set (VmHWM, also file pages). Medians over the rounds.

`--quick` takes small modules and one round: it only shows that the program runs.
"""

from __future__ import annotations

import sys

# The directory of this file would hide the standard library's `inspect`.
sys.path[0] = __file__.rpartition("/")[0].rpartition("/")[0] or "."

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.files import FULL, QUICK, Size, write_adapter  # noqa: E402
from methods.factors import LowRankFactors  # noqa: E402
from sora_cli.adapter.reading import open_adapter  # noqa: E402
from sora_cli.core.console import emit  # noqa: E402
from sora_cli.model.threads import one_thread  # noqa: E402

_SAMPLE = 0.005
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Run:
    """One run of the command."""

    seconds: float
    cpu: float
    """Seconds of processor time, which depends less on other programs on the machine."""
    anonymous: int
    """Largest RssAnon, bytes."""
    resident: int
    """Largest resident set, bytes."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small modules, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of the dense side")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, rounds = (QUICK, 1) if options.quick else (FULL, options.rounds)
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        directory = Path(temporary) / "adapter"
        write_adapter(directory, size, "bfloat16")
        megabytes = (directory / "adapter_model.safetensors").stat().st_size / 1e6
        emit(f"adapter: {len(size.modules())} modules, r = {size.rank}, bf16, {megabytes:.0f} MB")
        emit(
            f"torch {torch.__version__}, threads of the dense side: {options.threads}, "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        whole = compare(directory, size, rounds)
        report_command([run_command(directory) for _ in range(rounds)], whole)


def compare(directory: Path, size: Size, rounds: int) -> float:
    """Compare factors with dense products, one module per shape; return the dense side's time."""
    counts = Counter(size.modules().values())
    subset = {shape: path for path, shape in reversed(size.modules().items())}
    with open_adapter(directory) as file:
        modules = {shape: file.layers[path] for shape, path in subset.items()}
    emit(f"\nsingular values, median of {rounds} rounds in turns, float64")
    emit("    shape           modules   factors      dense    ratio   largest difference / s_1")
    totals = [0.0, 0.0]
    for shape, factors in modules.items():
        ours, theirs, worst = _in_turns(factors, rounds)
        n = counts[shape]
        totals = [totals[0] + n * ours, totals[1] + n * theirs]
        emit(
            f"    {shape[0]:>5} x {shape[1]:<5} {n:>9} {ours * 1e3:>7.1f} ms {theirs:>8.3f} s "
            f"{theirs / ours:>8.0f}   {worst:.1e}"
        )
    emit(
        f"    whole adapter, scaled {totals[0]:>8.1f} s {totals[1]:>9.3g} s "
        f"{totals[1] / totals[0]:>8.0f}"
    )
    return totals[1]


def _in_turns(factors: LowRankFactors, rounds: int) -> tuple[float, float, float]:
    """Return both sides' median seconds, and their results' largest difference relative to s_1."""
    with one_thread():
        factors.singular_values()  # once to warm up
    ours, theirs, worst = [], [], 0.0
    for _ in range(rounds):
        with one_thread():
            seconds, values = _timed(factors.singular_values)
        ours.append(seconds)
        seconds, dense = _timed(lambda: torch.linalg.svdvals(factors.dense()))
        theirs.append(seconds)
        difference = float((values - dense[: len(values)]).abs().max() / dense[0])
        worst = max(worst, difference)
    return statistics.median(ours), statistics.median(theirs), worst


def _timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def run_command(directory: Path) -> Run:
    """Run the command on the directory, and watch its memory."""
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-m", "sora_cli", "inspect", str(directory), "--json"]
    environment = {**os.environ, "PYTHONPATH": root}
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, env=environment)
        anonymous = resident = ended = 0
        while not ended:
            memory = _memory(process.pid)
            anonymous = max(anonymous, memory.get("RssAnon", 0))
            resident = max(resident, memory.get("VmHWM", 0))
            time.sleep(_SAMPLE)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        shown = json.loads(output.read())
    assert process.returncode == 0
    assert shown["modules"]["dead"] == 0
    return Run(seconds, usage.ru_utime + usage.ru_stime, anonymous, resident)


def _memory(pid: int) -> dict[str, int]:
    """Return bytes by name, from /proc; nothing if the process has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(number) for name, number, _ in fields}


def report_command(runs: list[Run], dense: float) -> None:
    """Print the medians."""
    seconds = statistics.median(run.seconds for run in runs)
    emit(f"\nsora inspect --json, a process of its own, median of {len(runs)}")
    emit(
        f"    wall time     {seconds:.2f} s, imports included; dense SVDs alone take "
        f"{dense / seconds:.3g} times as long"
    )
    emit(f"    processor     {statistics.median(run.cpu for run in runs):.2f} s")
    emit(f"    RssAnon       {statistics.median(run.anonymous for run in runs) / 1e6:.0f} MB")
    emit(f"    resident set  {statistics.median(run.resident for run in runs) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
