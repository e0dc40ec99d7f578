"""OpenMP's threads, with which torch computes on a CPU: how long they wait awake for each other."""

from __future__ import annotations

import os

TURNS = 10_000
CHOSEN_BY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Let OpenMP's threads sleep soon when they wait; must be called before torch is imported.

    A user's own choice stays. Processes that this one starts inherit it.
    """
    # libgomp, torch's OpenMP on Linux, waits awake for 300,000 turns, and so keeps a core from the
    # thread that it waits for. Seconds of 30 steps on two cores, idle and beside one busy loop
    # (benchmarks/busy.py): 2.1 and 12.5; with 10,000 turns 2.2 and 6.7; with 1,000 2.8 and 4.1. The
    # OpenMP of LLVM and Intel (macOS, conda) does not read this; its KMP_BLOCKTIME was not tried.
    if not any(name in os.environ for name in CHOSEN_BY):
        os.environ["GOMP_SPINCOUNT"] = str(TURNS)
