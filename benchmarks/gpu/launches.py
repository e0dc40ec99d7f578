"""Kernel launches of a step: their number, the CPU's time in them, and the GPU's busy time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.profiler import DeviceType, ProfilerActivity, profile

from benchmarks.gpu.sides import Side

_CALLS = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
"""Prefixes of the CUDA calls that queue work on a GPU."""


@dataclass(frozen=True)
class Launches:
    """Figures of a profiled step.

    Attributes:
        calls: number of launches, copies and fills. calls_ms: the CPU's time in these calls.
        busy_ms: time in which the GPU was busy.
    """

    calls: int
    calls_ms: float
    busy_ms: float


def launches_of(side: Side) -> Launches | None:
    """Profile a step; None on a CPU, which has no launches."""
    if side.device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        side.step()
    return summed(profiler.events() or ())


def summed(events: Iterable[Any]) -> Launches:
    """Sum up a profiler's events, with times in microseconds."""
    calls, calls_us, spans = 0, 0.0, []
    for event in events:
        begin, end = event.time_range.start, event.time_range.end
        if event.device_type == DeviceType.CUDA:
            # the profiler's own marks and waits are no work of the GPU
            note = getattr(event, "activity_type", None) == "gpu_user_annotation"
            if not (note or event.name == "Context Sync"):
                spans.append((begin, end))
        elif event.name.startswith(_CALLS):
            calls += 1
            calls_us += end - begin
    return Launches(calls, calls_us / 1e3, _covered(spans) / 1e3)


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans: several streams may work at once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total
