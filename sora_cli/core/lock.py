"""A lock that lets one run at a time work in an output directory.

It is the system's lock (`flock`, through filelock), so that it ends with its process even if that
is killed. The lock file names the process.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.core.atomic import is_leftover, naming, remove_file
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import tidied
from sora_cli.core.outputs import check_writable
from sora_cli.core.processes import is_main

if TYPE_CHECKING:
    from filelock import FileLock

FILE_NAME = ".lock"
_START = '{"pid": '
"""The beginning of a lock file's content (see `_myself`)."""
_ATTEMPTS = 20


@contextmanager
def locked(
    directory: Path, *, elsewhere: str = "wait for it, stop it, or train elsewhere: output.dir=DIR"
) -> Iterator[None]:
    """Lock a directory against other runs; create it if missing, remove it if it stays empty.

    Of several processes that train together, only the main process holds the lock.

    Args:
        elsewhere: the hint of the error if another run holds the lock.
    """
    if not is_main():
        yield
        return
    check_directory(directory)
    made, lock = _acquired(directory, elsewhere)
    file = directory / FILE_NAME

    def leave() -> None:
        remove_file(file)  # before the release: a waiting process sees it is gone
        lock.release()
        _remove_empty(made)

    with tidied(leave):
        with naming(file):
            file.write_text(json.dumps(_myself()), encoding="utf-8")
        yield


def is_locked(directory: Path) -> bool:
    """Return whether a run holds the lock of a directory; the run is not disturbed."""
    try:
        with (directory / FILE_NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_directory(path: Path) -> None:
    """Raise `SoraError` unless an output directory exists or can be made, and is writable."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise SoraError(
            f"output '{path}' cannot be a directory: '{existing}' is a file", hint="output.dir=DIR"
        )
    check_writable(path / FILE_NAME, called=path)


def holds_only(directory: Path, *names: str) -> bool:
    """Return whether a directory holds only these names, the lock, and leftovers of killed runs.

    True for a missing directory.
    """
    known = (FILE_NAME, *names)
    entries = directory.iterdir() if directory.is_dir() else ()
    return all(path.name in known or is_leftover(path) for path in entries)


def _acquired(directory: Path, elsewhere: str) -> tuple[list[Path], FileLock]:
    """Take the lock; return the directories created for it, and the lock."""
    for _ in range(_ATTEMPTS):
        # a run that ends may remove its empty directory between our mkdir and our lock
        with suppress(FileNotFoundError, FileExistsError):
            return _acquire(directory, elsewhere)
    return _acquire(directory, elsewhere)


def _acquire(directory: Path, elsewhere: str) -> tuple[list[Path], FileLock]:
    from filelock import FileLock, Timeout  # takes 80 ms: not before the recipe was checked

    file = directory / FILE_NAME
    if not _is_own(file):
        raise SoraError(
            f"'{file}' was not written by this program and will not be touched",
            hint="move it away, or train elsewhere: output.dir=DIR",
        )
    made = _make(directory)
    lock = FileLock(file, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise SoraError(
            f"another run is working in '{directory}': {_owner(file)}",
            hint=elsewhere,
        ) from error
    return made, lock


def _is_own(file: Path) -> bool:
    """Return whether the file at the lock's place is ours: missing, or with a process id.

    A killed process may have left any part of it.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return text.startswith(_START) or _START.startswith(text)


def _make(directory: Path) -> list[Path]:
    """Create a directory with its parents; return the created directories, deepest first."""
    missing = [p for p in (directory, *directory.parents) if not p.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:  # not empty, or deleted already
            return


def _myself() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["sora", *sys.argv[1:]],
    }


def _owner(file: Path) -> str:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is not known"
