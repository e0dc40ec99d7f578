"""Files and directories that are there completely or not at all.

Everything is written under a temporary name beside its place, flushed to the disk, and renamed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sora_cli.errors import SoraError


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file; readers see the old content or the new one, never a part."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file; readers see the old content or the new one, never a part."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(
    path: Path, *, force: bool = False, markers: Sequence[str] = ()
) -> Iterator[Path]:
    """An empty directory to fill, which takes the place of `path` when the block ends well.

    If the block raises, nothing is left behind, and what was at `path` is untouched.

    Args:
        force: replace a directory that is there; it stays as it was until the new one is complete.
        markers: file names one of which must be in a directory for it to be replaced, so that a
            slip of the hand does not delete something else.

    Raises:
        SoraError: `path` exists and may not be replaced.
    """
    check_replaceable(path, force=force, markers=markers)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        _share(temporary)
        sync_tree(temporary)
        _move_into_place(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, *, force: bool = False, markers: Sequence[str] = ()) -> None:
    """Raise `SoraError` unless `new_directory` could write there: for a check before long work."""
    if not os.path.lexists(path):
        return
    if not force:
        raise SoraError(f"{path} exists already", hint="choose another place, or add --force")
    if not path.is_dir():
        raise SoraError(f"{path} exists and is no directory")
    if Path.cwd().is_relative_to(path.resolve()):
        raise SoraError(f"{path} is, or holds, the current directory and can not be replaced")
    empty = next(path.iterdir(), None) is None
    if markers and not empty and not any((path / marker).is_file() for marker in markers):
        raise SoraError(
            f"{path} is not replaced, even with --force: it holds no {' or '.join(markers)}",
            hint="choose another place",
        )


def sync_tree(directory: Path) -> None:
    """Flush all files and directories below to the disk."""
    for root, _, files in os.walk(directory):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _share(directory: Path) -> None:
    """Give files the usual permissions: safetensors makes them for their owner's eyes only."""
    mask = os.umask(0)  # reading it means setting it
    os.umask(mask)
    for file in (path for path in directory.rglob("*") if path.is_file()):
        file.chmod(0o666 & ~mask)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename; a directory in the way is set aside first, and put back should the rename fail."""
    if not path.exists():
        temporary.rename(path)
        return
    aside = _beside(path)
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
