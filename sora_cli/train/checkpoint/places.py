"""The paths of a run's checkpoints, and the names of their files. Imports nothing heavy."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sora_cli.core.atomic import remove_directory, tidy

FOLDER = "checkpoints"
"""The folder of all checkpoints, in a run's directory."""
STATE_FILE = "state.safetensors"
"""Trained parameters and the method's state, in a checkpoint or a path's stage."""
TRAINER_FILE = "trainer_state.json"
RUN_FILE = "run.json"
MARK_FILE = "complete.json"
_MARKS = {RUN_FILE, MARK_FILE}


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step-{step:06d}"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return all checkpoints in the folder, complete or not, by step."""
    return sorted(folder.glob("step-[0-9]*"))


def is_own(path: Path) -> bool:
    """Return True if a directory is a checkpoint without foreign files, so it may be deleted."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    return bool(names & _MARKS) and names <= {STATE_FILE, TRAINER_FILE, *_MARKS}


def clear_checkpoints(folder: Path) -> None:
    """Delete the checkpoints in their folder, and the folder if it is then empty."""
    if not folder.is_dir():
        return
    tidy(folder)
    for path in filter(is_own, checkpoint_paths(folder)):
        remove_directory(path)
    with suppress(OSError):
        folder.rmdir()
