"""Work on many tensors at once, one core for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

_CORES = 8  # bounds the tensors in memory; reading keeps no more cores busy


def by_cores(names: Iterable[str], work: Callable[[str], T]) -> dict[str, T]:
    """Call `work` on each name, and return the results by name; cores take the names in order.

    Torch uses one thread in each call: two threads on one thin matrix are slower than one. If
    several calls raise an error, the first name's error is raised.
    """
    names = list(names)
    cores = min(os.cpu_count() or 1, _CORES)
    # torch's number of threads is kept per thread: each worker sets its own
    with one_thread(), ThreadPoolExecutor(cores, initializer=_one_torch_thread) as pool:
        return dict(zip(names, pool.map(work, names), strict=True))


def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread; more are slower for thin matrices, by far on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
