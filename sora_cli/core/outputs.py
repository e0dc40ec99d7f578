"""Outputs of commands: resolving their paths, and checks before they are written.

A command resolves each of its outputs once, with `output_path`, before any check.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from sora_cli.core.errors import SoraError, reason
from sora_cli.core.unpacked import unpacked_from

MARK = "sora"
"""Name of this tool in the metadata of its HTML pages ("generator") and PNGs ("Software")."""
_MARKS = f'<meta name="generator" content="{MARK}'.encode(), f"Software\0{MARK}".encode()
_TOP = 4096  # bytes at the beginning of a file in which the mark must be


def output_path(name: str | Path) -> Path:
    """Resolve `~` and `..` in an output's name.

    `MISSING/../X` becomes X. Without this, checks would not see an existing X, and writing would
    then replace it: writing creates the directory MISSING, and from then on the name means X.
    """
    path = Path(name).expanduser()
    if ".." not in path.parts:
        return path
    real = Path(os.path.realpath(path))
    return real if path.is_absolute() else Path(os.path.relpath(real))


def was_written_here(file: Path) -> bool:
    """Return True for an HTML page or a PNG picture written by this tool."""
    try:
        with file.open("rb") as stream:
            start = stream.read(_TOP)
    except OSError:
        return False
    return any(mark in start for mark in _MARKS)


def check_new_file(option: str, file: Path | None, *, force: bool, hint: str | None = None) -> None:
    """Raise `SoraError` unless an output file may be written.

    Pages and pictures of this tool are replaced. Any other existing file is replaced with `force`
    only. A device or a pipe is never replaced.

    Args:
        option: its spelling on the command line.
        file: None: the option was not given.
        hint: the way out, besides --force, if the file exists. None: name another file.
    """
    if file is None:
        return
    hint = hint or f"name another file: {option} FILE"
    if file.is_dir():
        raise SoraError(f"{option} {file} is a directory", hint=f"name a file: {file}/NAME")
    above = next((folder for folder in file.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise SoraError(f"{option} {file}: {above} is a file, not a directory")
    if file.exists() and not file.is_file():
        raise SoraError(f"{option} {file} is a device or a pipe and is not replaced", hint=hint)
    if file.exists() and not force and not was_written_here(file):
        raise SoraError(f"{file} exists already", hint=f"{hint}, or add --force")
    check_writable(file)


def check_writable(path: Path, *, called: Path | None = None) -> None:
    """Raise `SoraError` if the system does not allow writing at a path, existing or not.

    Args:
        called: the path to name in the error instead.
    """
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), None)
    if above is None or not above.is_dir():
        return
    # A trial, not a look at permissions: root has all of them, even in /proc. The trial has the
    # name of a half-written directory (`core.atomic`), which readers of directories ignore.
    trial = above / f".sora.{secrets.token_hex(4)}.partial"
    try:
        trial.mkdir()
    except OSError as error:
        raise SoraError(
            f"{called or path} cannot be written: {reason(error, trial)}",
            hint="write to another directory",
        ) from error
    with suppress(FileNotFoundError):  # another run that starts here may have tidied it away
        trial.rmdir()


def check_apart(
    output: Path,
    *read: Path,
    hint: str = "choose another place: -o OUT",
    within: bool = False,
) -> None:
    """Raise `SoraError` if writing an output would change an input.

    Links, `..` and other spellings of the same place make no difference.

    Args:
        output: a file or directory to write.
        read: files and directories that are read; missing ones are skipped. What was unpacked from
            a file is that file.
        hint: the way out.
        within: accept an output inside a directory that is read.
    """
    for place in filter(os.path.lexists, (unpacked_from(place) or place for place in read)):
        how = overlap(output, place)
        if how is Overlap.SAME:
            raise SoraError(
                f"{output} is an input of this command and would be overwritten", hint=hint
            )
        if how is Overlap.INSIDE and not within:
            raise SoraError(f"{output} lies inside an input of this command: {place}", hint=hint)
        if how is Overlap.AROUND:
            raise SoraError(f"{output} contains an input of this command: {place}", hint=hint)


class Overlap(Enum):
    """The way in which a place overlaps with another one."""

    SAME = auto()
    INSIDE = auto()
    AROUND = auto()


def overlap(place: Path, other: Path) -> Overlap | None:
    """Return how a place overlaps with another one, by any of their names; None: they are apart."""
    above, around = _places(place), _places(other)
    if above[0] == around[0]:
        return Overlap.SAME
    if around[0] in above:
        return Overlap.INSIDE
    return Overlap.AROUND if above[0] in around else None


def _places(path: Path) -> list[object]:
    """Return an identity of a path and of each directory above: device and inode if it exists."""
    real = Path(os.path.realpath(path))
    identities: list[object] = []
    for part in (real, *real.parents):
        try:
            facts = part.stat()
            # not the name: on some file systems A and a are one file
            identities.append((facts.st_dev, facts.st_ino))
        except OSError:
            identities.append(part)
    return identities
