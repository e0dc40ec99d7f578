"""Files and directories that are written completely or not at all.

Each is written under a temporary name beside its place, flushed to the disk, and renamed. A killed
process leaves names that end in `.partial`, or in `.replaced` where a file system cannot exchange
two directories. `tidy` deletes the first kind, and moves the second back if its original is gone.

All other modules write, replace and delete through this one. `tests/replay.py` records what it does
and opens every state in which a kill may leave a directory.
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
_RANDOM = 8  # random characters before these endings
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}(\.partial|\.replaced)", re.DOTALL)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, from fcntl.h and linux/fs.h


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file; readers see either the old content or the new content."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file and read it back; readers see either the old content or the new content.

    Args:
        private: only its owner may read it.

    Raises:
        OSError: the system cannot write, for example to a full disk.
    """
    with naming(path):
        real = path.resolve()  # before a directory is made, which would change where `..` leads
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(real)
        try:
            with temporary.open("wb") as file:
                if private:
                    os.fchmod(file.fileno(), 0o600)  # before there is anything to read
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # before the rename: else a crash may leave an empty file
            check_read_back(temporary.read_bytes() == content, path)
            temporary.replace(real)
            _sync(real.parent)  # the rename itself: else a power cut may undo it
        finally:
            remove_file(temporary)


def check_read_back(same: bool, what: str | Path = "the written file") -> None:
    """Raise `SoraError` unless a file that was read back equals the written content."""
    if not same:
        raise SoraError(f"{what} reads back differently: check the disk")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file name; the file replaces `path` when the block ends without an error.

    If the block raises, the temporary file is deleted and `path` stays unchanged.
    """
    with naming(path):
        real = path.resolve()  # before a directory is made, which would change where `..` leads
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(real)
        with tidied(partial(remove_file, temporary)):
            yield temporary
            _sync(temporary)
            temporary.replace(real)
            _sync(real.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the user's own file name into the system's errors.

    The error of a full disk names no file, and other errors name the temporary file.
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
    """Yield an empty temporary directory, which replaces `path` when the block ends without error.

    If the block raises, the temporary directory is deleted and `path` stays unchanged.

    Args:
        force: replace an existing directory; it stays complete until the new one is complete.
        markers: an existing directory is replaced only if it holds one of these files. This guards
            against deleting the wrong directory.
        names: patterns; an existing directory with any other name in it is not replaced. None: any
            name is allowed.
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
    hint: str = "choose another place: -o OUT",
) -> None:
    """Raise `SoraError` unless `new_directory` could write `path`; call it before long work."""
    check_writable(path)
    if not os.path.lexists(path):
        return
    if not force:
        raise SoraError(f"{path} exists already", hint=f"{hint}, or add --force")
    if not path.is_dir():
        raise SoraError(f"{path} exists and is not a directory", hint=hint)
    if Path.cwd().is_relative_to(path.resolve()):
        raise SoraError(f"{path} is, or holds, the current directory and cannot be replaced")
    existing = [entry.name for entry in path.iterdir() if not is_leftover(entry)]
    stays = f"{path} is not replaced, even with --force"
    if markers and existing and not any((path / marker).is_file() for marker in markers):
        raise SoraError(
            f"{stays}: it holds no {' or '.join(markers)}, so this tool did not write it", hint=hint
        )
    known = existing if names is None else names
    foreign = sorted(name for name in existing if not any(fnmatchcase(name, k) for k in known))
    if foreign:
        first = first_few((repr(name) for name in foreign), 1)
        raise SoraError(f"{stays}: it also holds {first}", hint=f"move that away, or {hint}")


def sync_tree(directory: Path) -> None:
    """Flush a directory, and all files and directories below it, to the disk."""
    for root, _, files in os.walk(directory):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _set_permissions(directory: Path) -> None:
    """Give files the usual permissions; safetensors makes its files readable by the owner only."""
    mask = os.umask(0)  # the mask can be read only by setting it
    os.umask(mask)
    for file in (path for path in directory.rglob("*") if path.is_file()):
        file.chmod(0o666 & ~mask)


def remove_file(path: Path) -> None:
    """Delete a file, if there is one."""
    path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Rename a directory, then delete it: a kill in between leaves no half-deleted `path`."""
    aside = _beside(path)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Return whether a name marks a half-written file or directory of a killed process."""
    return _LEFTOVER.fullmatch(path.name) is not None


def tidy(directory: Path) -> None:
    """Delete the half-written files of killed processes from a directory that has no writer now."""
    leftovers = [path for path in directory.iterdir() if is_leftover(path)]
    for left in (path for path in leftovers if path.name.endswith(_REPLACED)):
        original = left.with_name(left.name[1 : -len(_REPLACED) - _RANDOM - 1])
        if original.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(original)
    for left in (path for path in leftovers if path.name.endswith(_PARTIAL)):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            remove_file(left)


def _move_into_place(temporary: Path, path: Path) -> None:
    """Rename a finished directory to `path`.

    An old directory at `path` is exchanged with it in one step. Where the system cannot do that,
    the old one is set aside first, and moved back if the rename fails.
    """
    if not path.exists():
        temporary.rename(path)
        return
    if _exchange(temporary, path):
        return  # the old directory now has the temporary name, and the caller deletes it
    aside = _beside(path, _REPLACED)
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    _sync(path.parent)  # before the deletion: else a power cut may leave neither directory
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; return False if the system or file system cannot."""
    # renameat2 has no Python binding, and os.replace() refuses a directory that is not empty
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
