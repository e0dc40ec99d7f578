"""GGUF files, as transformers reads them: each is parsed once, whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def parsed_once(*sources: str) -> Iterator[None]:
    """Within the block, parse a GGUF file once.

    transformers parses the whole vocabulary anew for the configuration, for the tokenizer and for
    the weights, which takes 3 s each time for SmolLM2, and makes the same table of tensor names
    once for each module, which takes 6 s. Blocks may stand within blocks.

    Args:
        sources: resolved models; nothing is done where none is a GGUF file.
    """
    if not any(source.lower().endswith(".gguf") for source in sources):
        yield
        return
    try:
        import gguf
    except ImportError:  # transformers says so
        yield
        return
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(reader), cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names
