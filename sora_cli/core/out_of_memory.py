"""Memory that runs out: say where, how much was missing, and which settings need less."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sora_cli.core.errors import SoraError

_MESSAGES = ("can't allocate memory", "out of memory")  # of torch on a CPU, and of CUDA
_TRIED = re.compile(r"[Tt]ried to allocate ([\d.,]+ ?\w+)")


def ran_out(error: BaseException) -> bool:
    """Return True if an error says that memory ran out, the machine's or an accelerator's."""
    # torch's OutOfMemoryError is a RuntimeError; its CPU allocator raises plain ones
    # until: torch > 2.13
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _MESSAGES)
    )


def describe(error: BaseException) -> str:
    """Return the error in a few words, with the size of the tensor that found no room."""
    tried = _TRIED.search(str(error))
    return f"out of memory (for a tensor of {tried[1]})" if tried else "out of memory"


@contextmanager
def telling(
    place: Callable[[], str], *, where: Callable[[], str | None] = lambda: None, hint: str
) -> Iterator[None]:
    """Turn memory that runs out in the block into an error with the place and a remedy.

    Args:
        place: the step or phase. where: sizes of the work. hint: settings that need less memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise SoraError(f"{place()}: {describe(error)}", where=where(), hint=hint) from error
