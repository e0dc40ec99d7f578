"""Files and directories that are there completely or not at all.

Everything is written under a temporary name beside its place, flushed to the disk, and renamed.
What a killed process leaves behind ends in `.partial`, or in `.replaced` where a file system
cannot exchange two directories; `tidy` deletes the one and, if need be, puts the other back.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import tidied
from sora_cli.core.outputs import check_writable
from sora_cli.core.words import first_few

_PARTIAL, _REPLACED = ".partial", ".replaced"
_RANDOM = 8  # characters before them
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}(\.partial|\.replaced)", re.DOTALL)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, from fcntl.h and linux/fs.h


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file; readers see the old content or the new one, never a part."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file and read it back; readers see the old content or the new one, never a part.

    Raises:
        SoraError: it reads back differently.
        OSError: the disk is full, or the like.
    """
    with naming(path):
        real = path.resolve()  # before a directory is made, which would change where `..` leads
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(real)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            check_read_back(temporary.read_bytes() == content, path)
            temporary.replace(real)
            _sync(real.parent)  # else a power cut may undo the rename
        finally:
            temporary.unlink(missing_ok=True)


def check_read_back(same: bool, what: str | Path = "what was written") -> None:
    """Raise `SoraError` unless a file reads back as it was meant to be."""
    if not same:
        raise SoraError(f"{what} reads back differently: is the disk all right?")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which replaces `path` when the block ends without an error.

    If the block raises, nothing is left behind, and what was at `path` is untouched.
    """
    with naming(path):
        real = path.resolve()  # before a directory is made, which would change where `..` leads
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(real)
        with tidied(partial(temporary.unlink, missing_ok=True)):
            yield temporary
            _sync(temporary)
            temporary.replace(real)
            _sync(real.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make the system's errors name what is written as the user did.

    Those of a full disk name nothing, others a temporary file.
    """
    try:
        yield
    except OSError as error:
        file = error.filename
        known = [] if file is None else [Path(file), *Path(file).parents]
        if error.errno is None or (known and not any(is_leftover(part) for part in known)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def new_directory(
    path: Path,
    *,
    force: bool = False,
    markers: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> Iterator[Path]:
    """Give an empty directory to fill, which replaces `path` when the block ends without an error.

    If the block raises, nothing is left behind, and what was at `path` is untouched.

    Args:
        force: replace a directory that is there; it stays as it was until the new one is complete.
        markers: file names one of which must be in a directory for it to be replaced, so that a
            slip of the hand does not delete something else.
        names: what alone may be in it, as patterns; None: anything.

    Raises:
        SoraError: `path` exists and may not be replaced.
    """
    check_replaceable(path, force=force, markers=markers, names=names)
    with naming(path):
        real = path.resolve()  # before a directory is made, which would change where `..` leads
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(real)
        temporary.mkdir()
        with tidied(partial(shutil.rmtree, temporary, ignore_errors=True)):
            yield temporary
            _set_permissions(temporary)
            sync_tree(temporary)
            _move_into_place(temporary, real)
            _sync(real.parent)


def check_replaceable(
    path: Path,
    *,
    force: bool = False,
    markers: Sequence[str] = (),
    names: Sequence[str] | None = None,
    hint: str = "choose another place",
) -> None:
    """Raise `SoraError` unless `new_directory` could write there: a check before long work."""
    check_writable(path)
    if not os.path.lexists(path):
        return
    if not force:
        raise SoraError(f"{path} exists already", hint=f"{hint}, or add --force")
    if not path.is_dir():
        raise SoraError(f"{path} exists and is not a directory", hint=hint)
    if Path.cwd().is_relative_to(path.resolve()):
        raise SoraError(f"{path} is, or holds, the current directory and cannot be replaced")
    there = [entry.name for entry in path.iterdir() if not is_leftover(entry)]
    stays = f"{path} is not replaced, even with --force"
    if markers and there and not any((path / marker).is_file() for marker in markers):
        raise SoraError(f"{stays}: it holds no {' or '.join(markers)}", hint=hint)
    known = there if names is None else names
    foreign = sorted(name for name in there if not any(fnmatchcase(name, k) for k in known))
    if foreign:
        first = first_few((repr(name) for name in foreign), 1)
        raise SoraError(f"{stays}: it also holds {first}", hint=f"move that away, or {hint}")


def sync_tree(directory: Path) -> None:
    """Flush all files and directories below to the disk."""
    for root, _, files in os.walk(directory):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _set_permissions(directory: Path) -> None:
    """Give files the usual permissions: safetensors lets only the owner read what it writes."""
    mask = os.umask(0)  # reading it means setting it
    os.umask(mask)
    for file in (path for path in directory.rglob("*") if path.is_file()):
        file.chmod(0o666 & ~mask)


def remove_directory(path: Path) -> None:
    """Delete a directory; a killed process leaves it whole, or under another name."""
    aside = _beside(path)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Return whether a killed process has left this half-written."""
    return _LEFTOVER.fullmatch(path.name) is not None


def tidy(directory: Path) -> None:
    """Delete what killed processes have left half-written in a directory that nobody writes to."""
    found = [path for path in directory.iterdir() if is_leftover(path)]
    for left in (path for path in found if path.name.endswith(_REPLACED)):
        original = left.with_name(left.name[1 : -len(_REPLACED) - _RANDOM - 1])
        if original.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(original)
    for left in (path for path in found if path.name.endswith(_PARTIAL)):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename a directory onto its place.

    An old one there is exchanged, or set aside and put back if the rename fails.
    """
    if not path.exists():
        temporary.rename(path)
        return
    if _exchange(temporary, path):
        return  # the old one now has the temporary name
    aside = _beside(path, _REPLACED)
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; return False where the system or file system cannot."""
    # Python has no binding of renameat2; os.replace() refuses a directory that is not empty
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE)
    return done == 0


def _beside(path: Path, end: str = _PARTIAL) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM // 2)}{end}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
