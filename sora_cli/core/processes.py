"""Number and rank of the processes that train together under `torchrun` or `accelerate launch`.

Nothing slow is imported, since a command asks for its rank before it prints its first line.
"""

from __future__ import annotations

import os
from typing import TypeVar

from sora_cli.core.device import process_state
from sora_cli.core.errors import SoraError

Value = TypeVar("Value")


def world_size() -> int:
    """Return the number of processes that train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched_with(setting: str) -> bool:
    """Return True if `accelerate launch` turned a setting on, such as ACCELERATE_USE_FSDP."""
    return os.environ.get(setting, "").lower() == "true"


def rank() -> int:
    """Return this process's number among the processes that train together, from 0."""
    return int(os.environ.get("RANK") or 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Return True in the main process, which prints and writes the run's files."""
    return rank() == 0


def from_first_process(value: Value) -> Value:
    """Return the first process's value on every process, so that all take the same decisions."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    process_state()
    values = [value]
    broadcast_object_list(values)
    return values[0]


def check_alone(key: str, hint: str) -> None:
    """Raise `SoraError` if several processes train together, which a recipe's key does not allow.

    Args:
        hint: the override that turns the key off.
    """
    if world_size() > 1:
        raise SoraError(
            f"{key} works with one process only; it is untested with several",
            where=f"this run has {world_size()} processes",
            hint=hint,
            key=key,
        )
