"""The interface of the parts of a run with counters that a checkpoint stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Resumable(ABC):
    """A part of a run that keeps counters; for example, a callback of the trainer."""

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """Return all counters, JSON-able."""

    @abstractmethod
    def restore(self, progress: dict[str, Any]) -> None:
        """Set the counters to the result of `progress`; called after `on_train_begin`."""
