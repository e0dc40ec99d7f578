"""Directories that stand for a file: commands read the directory, and people see the file."""

from __future__ import annotations

from pathlib import Path

_FILES: dict[Path, Path] = {}
"""Directory -> the file that was unpacked into it."""


def stands_for(folder: Path, file: Path) -> None:
    """Record that a packed file was unpacked into a directory."""
    _FILES[folder] = file


def unpacked_from(folder: Path) -> Path | None:
    """Return the file that a directory was unpacked from; None: from none."""
    return _FILES.get(folder)


def with_files(text: str) -> str:
    """Return a text for people with the file's name wherever it names such a directory."""
    for folder, file in _FILES.items():
        text = text.replace(str(folder), str(file))
    return text
