"""Measuring in turns, medians with intervals, tables, and a description of the machine."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from scipy.stats import quantile_test

from sora_cli.core.device import device_module

INTERVAL = 0.9
"""Confidence of the intervals of medians."""
_ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def data_folder(given: Path | None, name: str) -> Path | None:
    """Return the folder of rows that was given, or SORA_DATA/name; None: there is neither."""
    if given is None and "SORA_DATA" in os.environ:
        return Path(os.environ["SORA_DATA"]) / name
    return given


def in_turns(work: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each side once a round, in random order; return the results by side."""
    order, rng = list(work), random.Random(0)
    figures: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        rng.shuffle(order)  # so that no side always runs after the same other side
        for name in order:
            figures[name].append(work[name]())
    return figures


def timing_rows(times: Mapping[str, Sequence[float]], baseline: str) -> list[list[str]]:
    """Return a row for each side: name, seconds, and their ratio to the baseline's seconds.

    Args:
        baseline: name of a side; if this side was not measured, the ratios are empty.
    """
    rows = []
    for name, figures in times.items():
        low, high = quartiles(figures)
        other = times.get(baseline)
        ratio = shown_ratio(ratios(figures, other)) if other else ""
        rows.append([name, f"{median(figures):.1f} ({low:.1f} to {high:.1f})", ratio])
    return rows


def spent(record: Path) -> str:
    """Return the seconds of a run's parts, longest first, from its report or record."""
    seconds = json.loads(record.read_text(encoding="utf-8"))["seconds"]
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {taken:.1f} s" for name, taken in longest)


def timed(
    command: Sequence[str],
    *,
    codes: Sequence[int] = (0,),
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Run a command, and return the seconds from the start of its process to its end.

    Args:
        codes: exit codes of success.
        clock: gives seconds; `of_commands` counts those of processors, for a busy machine.
    """
    start = clock()
    done = subprocess.run(command, capture_output=True, text=True, env=_ENVIRONMENT)
    seconds = clock() - start
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return seconds


def of_commands() -> float:
    """Return the processor seconds of all commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return ratios round by round, so that a drift of the machine's speed cancels out."""
    return [a / b for a, b in zip(one, other, strict=True)]


def median_interval(figures: Sequence[float]) -> tuple[float, float]:
    """Return an interval that contains the true median with 90 % confidence (order statistics)."""
    # n figures span the median with confidence 1 - 2^(1-n): 87.5 % for 4, 93.75 % for 5
    if len(figures) < 5:
        return min(figures), max(figures)
    interval = quantile_test(figures, p=0.5).confidence_interval(INTERVAL)
    return float(interval.low), float(interval.high)


def median(figures: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(figures)


def quartiles(figures: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    if len(figures) < 2:
        return figures[0], figures[0]
    low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, high


def shown_ratio(figures: Sequence[float]) -> str:
    """Return '1.12 [1.10, 1.14]': the median and its interval."""
    low, high = median_interval(figures)
    return f"{median(figures):.2f} [{low:.2f}, {high:.2f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(device: str) -> str:
    """Return a line that describes the machine."""
    load = os.getloadavg()[0]
    threads = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    if device != "cpu":
        return f"{device_module().get_device_name()}, {threads}, load {load:.1f}"
    return f"{_processor()}, {os.cpu_count()} cores, {threads}, load {load:.1f}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown processor"
    fields = dict(line.split("\t:", 1) for line in lines if "\t:" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    wide = "AVX-512" if "avx512f" in fields.get("flags", "") else "no AVX-512"
    bf16 = "bf16" if "avx512_bf16" in fields.get("flags", "") else "no bf16"
    name = fields.get("model name", "unknown processor")
    model = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{name} ({model}, {wide}, {bf16})"
