"""The package gguf: is it installed, and does it read a file, and only once?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sora_cli.core.errors import SoraError, first_line


def check_package(needed: str = "writing GGUF files needs the package gguf") -> None:
    """Check that the package gguf is installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise SoraError(needed, hint="pip install gguf") from error


@contextmanager
def reading(file: Path, hint: str | None = None) -> Iterator[None]:
    """Turn errors inside the block into `SoraError`: the package parses without checks."""
    try:
        yield
    except SoraError:
        raise
    except Exception as error:
        raise SoraError(f"the GGUF file {file} cannot be read: {first_line(error)}",
                        hint=hint) from error  # fmt: skip


@contextmanager
def parsed_once(*sources: str) -> Iterator[None]:
    """Parse each GGUF file only once inside the block, and in a third of the time.

    transformers parses the whole vocabulary separately for configuration, tokenizer and weights,
    which takes 3 s each time for SmolLM2, and builds the same table of tensor names for each
    module, which takes 6 s. Blocks may be nested.

    Args:
        sources: resolved models; without a GGUF file among them nothing is changed.
    """
    # until: transformers > 5.24
    if not any(source.lower().endswith(".gguf") for source in sources):
        yield
        return
    try:
        import gguf
    except ImportError:  # transformers reports the missing package
        yield
        return
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    parsed = cache(in_plain_arrays(reader))
    gguf.GGUFReader = lambda file: parsed(str(file))  # transformers names files by texts
    gguf.get_tensor_name_map = cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def in_plain_arrays(reader: Any) -> Any:
    """Return a reader of GGUF files whose parts are plain arrays of the same mapped memory.

    Every string of a vocabulary is a slice, and a slice of `np.memmap` takes three times as long.
    """
    if not isinstance(reader, type):  # that of a block around this one
        return reader

    def keep(self: Any, mapped: np.memmap) -> None:
        self._plain = np.asarray(mapped)

    return type("Reader", (reader,), {"data": property(lambda self: self._plain, keep)})
