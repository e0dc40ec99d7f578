"""The contract of the parts of a run that a checkpoint remembers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Resumable(ABC):
    """A part of a run that counts something, such as a trainer's callback."""

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """Return everything counted so far, JSON-able."""

    @abstractmethod
    def restore(self, progress: dict[str, Any]) -> None:
        """Continue from what `progress` returned; called after `on_train_begin`."""
