"""Where the checkpoints of a run lie. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

FOLDER = "checkpoints"
"""Of a run's directory."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:06d}"


def checkpoint_paths(folder: Path) -> list[Path]:
    """All that are there, complete or not, by step."""
    return sorted(folder.glob("step-*"))
