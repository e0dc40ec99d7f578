"""Training beside other programs: libgomp's own wait, ours (`sora_cli.core.openmp`), one thread.

    python -m benchmarks.busy [--rounds 5] [--loops 0 1 2] [--steps 30] [--turns 3000 1000]

In every round `sora train quickstart` takes some steps in each way and beside each number of loops
that keep a core busy. `--turns` adds ways: threads that wait awake for so many turns. Printed are
median seconds of training alone, with quartiles, and whether all ways with the same number of
threads trained the same adapter.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

from benchmarks.measure import machine, markdown, median, quartiles
from sora_cli.core.console import emit, say
from sora_cli.core.openmp import TURNS
from sora_cli.report import read_report

WAYS = {
    "libgomp's own: 300,000 turns": {"GOMP_SPINCOUNT": "300000"},
    f"ours: {TURNS:,} turns": {},
    "asleep at once": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
_OURS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loops", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", nargs="+", type=int, default=[])
    options = parser.parse_args()
    ways = WAYS | {f"{turns:,} turns": {"GOMP_SPINCOUNT": str(turns)} for turns in options.turns}
    emit(f"{machine('cpu')}; quickstart, {options.steps} steps")
    seconds: dict[tuple[str, int], list[float]] = {}
    adapters: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory(prefix="sora-busy-") as folder:
        for _ in range(options.rounds):
            for loops in options.loops:
                for way, variables in ways.items():
                    with busy(loops):
                        taken, adapter = train(Path(folder, "run"), variables, options.steps)
                    say(f"{way}, beside {loops}: {taken:.1f} s")
                    seconds.setdefault((way, loops), []).append(taken)
                    adapters.setdefault("one" if way == "one thread" else "all", set()).add(adapter)
    rows = [[way, *(_shown(seconds[way, loops]) for loops in options.loops)] for way in ways]
    beside = [f"beside {n} loop{'s' * (n != 1)}, s" for n in options.loops]
    emit(markdown(["threads wait", *beside], rows))
    emit(
        f"Different adapters: {len(adapters['all'])} with all threads, {len(adapters['one'])} with "
        f"one, {len(adapters['all'] | adapters['one'])} together."
    )


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep cores busy while the block runs."""
    with ExitStack() as stack:
        for _ in range(loops):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def train(run: Path, way: dict[str, str], steps: int) -> tuple[float, str]:
    """Train the quickstart; return the seconds of its steps, and the digest of the adapter."""
    words = ["quickstart", f"training.max_steps={steps}", f"output.dir={run}"]
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
    subprocess.run(
        [sys.executable, "-m", "sora_cli", "train", *words, "--force", "--no-verify"],
        check=True, capture_output=True, env={**inherited, "HF_HUB_OFFLINE": "1", **way},
    )  # fmt: skip
    report = read_report(run)
    assert report is not None
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    return report.seconds["train"], sha256(adapter).hexdigest()


def _shown(figures: list[float]) -> str:
    low, high = quartiles(figures)
    return f"{median(figures):.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
