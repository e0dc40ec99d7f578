"""What a part of a run must tell for the run to go on from a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Resumable(ABC):
    """Something that keeps count while a run goes on, such as a trainer's callback."""

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """All it has counted so far, JSON-able."""

    @abstractmethod
    def go_on(self, progress: dict[str, Any]) -> None:
        """Take up what `progress` told; called when training begins, after `on_train_begin`."""
