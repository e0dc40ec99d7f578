"""Where the recorded reference data are; tests that need them skip when they are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def golden_folder() -> Path:
    """Folder of the golden trajectories.

    SORA_GOLDEN names it; else it is the sibling `golden` of SORA_DATA; else `../shared/golden`.
    """
    if named := os.environ.get("SORA_GOLDEN"):
        return Path(named)
    if data := os.environ.get("SORA_DATA"):
        return Path(data).parent / "golden"
    return ROOT.parent / "shared" / "golden"


def golden_file(name: str) -> Path:
    """A file of that folder. Without the folder the test skips; without the file it fails."""
    folder = golden_folder()
    if not folder.is_dir():
        pytest.skip(f"no golden trajectories in {folder}; set SORA_GOLDEN to their folder")
    return folder / name


def glue_folder() -> Path:
    """The local copy of GLUE, as `data_folder` finds it."""
    return data_folder("glue")


def data_folder(name: str) -> Path:
    """A folder in SORA_DATA, else in `../shared/data`; skips without it."""
    named = os.environ.get("SORA_DATA")
    folder = (Path(named) if named else ROOT.parent / "shared" / "data") / name
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}; set SORA_DATA to the folder that holds {name}/")
    return folder.resolve()
