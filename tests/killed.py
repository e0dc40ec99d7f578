"""`sora`, in a process that kills itself with SIGKILL inside a write of a given kind.

    python -m tests.killed KIND NUMBER train recipe.yaml ...

KIND is part of a file's path. The process dies in the NUMBER-th write (from 1) of such a file or
directory, with half of it written; or, for "KIND:rename", before it is renamed into its place; or,
for "KIND:delete", while it is being deleted.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sora_cli.app import main
from sora_cli.core import atomic
from tests import blank


def install(kind: str, number: int) -> None:
    """Prepare the end."""
    blank.install()
    name, _, moment = kind.partition(":")
    left = [number]

    def reached(path: str) -> bool:
        if name not in path:
            return False
        left[0] -= 1
        return left[0] == 0

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "rename":
        _before(Path, "replace", lambda path, *_: reached(str(path)), die)
        _before(atomic, "_move_into_place", lambda _, path: reached(str(path)), die)
    elif moment == "delete":
        full = lambda path, **_: Path(path).is_dir() and reached(str(path))  # noqa: E731
        _before(shutil, "rmtree", full, _half_deleted)
    else:
        _before(os, "fsync", lambda fd: reached(str(_path(fd))), _half_written)


def _before(owner: Any, name: str, when: Callable[..., bool], then: Callable[..., None]) -> None:
    inner = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            then(*args, **kwargs)
        return inner(*args, **kwargs)

    setattr(owner, name, wrapped)


def _half_written(descriptor: int) -> None:
    path = _path(descriptor)
    if path.is_file():
        os.truncate(path, path.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _path(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _half_deleted(path: Any, **_: Any) -> None:
    next(p for p in sorted(Path(path).rglob("*")) if p.is_file()).unlink()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    install(sys.argv[1], int(sys.argv[2]))
    sys.argv[1:3] = []
    main()
