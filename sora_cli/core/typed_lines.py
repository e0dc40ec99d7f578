"""Lines that somebody types."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from sora_cli.core.interruption import interruptible


def typed_lines() -> Iterator[str]:
    """Yield the lines typed after a prompt; without a terminal, yield the lines of stdin."""
    read: Callable[[], str] = partial(next, sys.stdin)
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 (gives `input` a history and keys that edit)
        read = partial(input, "> ")
    while True:
        try:
            with interruptible():
                line = read()
        except (EOFError, StopIteration):
            return
        yield line
