"""This process among several that train together, as `torchrun` or `accelerate launch` count them.

Nothing heavy is imported: the first lines a command prints must come from one process only.
"""

from __future__ import annotations

import os

from sora_cli.core.errors import SoraError


def world_size() -> int:
    """Return how many processes train together; 1 where no launcher started this one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return int(os.environ.get("RANK") or 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this is the process that talks, and writes the run's files."""
    return rank() == 0


def check_alone(key: str, hint: str) -> None:
    """Check that no other process trains with this one, which a recipe's key does not allow.

    Args:
        hint: the words that turn the key off.

    Raises:
        SoraError: there are several.
    """
    if world_size() > 1:
        raise SoraError(
            f"{key} works on one process only: with several it was never tried",
            where=f"there are {world_size()}",
            hint=hint,
            key=key,
        )
