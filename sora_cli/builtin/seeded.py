"""Making a model from a fixed seed, and leaving no trace of that in the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_SEED = 0


@contextmanager
def seeded() -> Iterator[None]:
    """Torch's generator starts from a fixed seed and is put back; transformers is quiet."""
    import torch

    from sora_cli.model import quiet_loading

    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.default_generator.manual_seed(_SEED)
        yield
