"""The paths of a run's checkpoints. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

FOLDER = "checkpoints"
"""The folder of all checkpoints, in a run's directory."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step-{step:06d}"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return all checkpoints in the folder, complete or not, by step."""
    return sorted(folder.glob("step-*"))
