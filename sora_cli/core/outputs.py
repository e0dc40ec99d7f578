"""Outputs of commands: the place a name means, and whether a file may be written there.

A command resolves each of its outputs once, with `output_path`, before any check.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from sora_cli.core.errors import SoraError, reason

MARK = "sora"
"""The name of this tool in its pages (their generator) and pictures (their software)."""
_MARKS = '<meta name="generator" content="{}', "Software\0{}"
_TOP = 4096  # bytes at a file's beginning that hold its mark


def output_path(name: str | Path) -> Path:
    """Resolve `~` and `..` in an output's name.

    `MISSING/../X` becomes X. Left as it is, X would not exist to any check, and then be replaced:
    writing makes the directory MISSING, and from then on the name means X.
    """
    path = Path(name).expanduser()
    if ".." not in path.parts:
        return path
    real = Path(os.path.realpath(path))
    return real if path.is_absolute() else Path(os.path.relpath(real))


def was_written_here(file: Path, *, command: str = "") -> bool:
    """Return whether a file is a page or a picture (PNG) that this tool has written.

    Args:
        command: the command that wrote it; "": any.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(_TOP)
    except OSError:
        return False
    name = f"{MARK} {command}".rstrip()
    return any(mark.format(name).encode() in start for mark in _MARKS)


def check_new_file(
    option: str, file: Path | None, *, force: bool, hint: str = "name another file"
) -> None:
    """Raise `SoraError` unless an output file may be written.

    Pages and pictures of this tool are replaced; any other file only by force; and what is no
    file, such as a device, never.

    Args:
        option: as it is written on the command line.
        file: None: not given.
        hint: what to do where a file is there already, besides --force.
    """
    if file is None:
        return
    if file.is_dir():
        raise SoraError(f"{option} {file} is a directory", hint=f"name a file: {file}/NAME")
    above = next((folder for folder in file.parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise SoraError(f"{option} {file}: {above} is a file, not a directory")
    if file.exists() and not file.is_file():
        raise SoraError(f"{option} {file} is a device or a pipe: it stays", hint=hint)
    if file.exists() and not force and not was_written_here(file):
        raise SoraError(f"{file} exists already", hint=f"{hint}, or add --force")
    check_writable(file)


def check_writable(path: Path, *, called: Path | None = None) -> None:
    """Raise `SoraError` where the system lets nothing be written, whether it is there or not.

    Args:
        called: the place to name instead.
    """
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), None)
    if above is None or not above.is_dir():
        return
    # Asking for permissions is not enough: root has all of them, in /proc, too. The trial has the
    # name of a half-written directory (`core.atomic`), which all that looks at directories ignores.
    trial = above / f".sora.{secrets.token_hex(4)}.partial"
    try:
        trial.mkdir()
    except OSError as error:
        raise SoraError(
            f"{called or path} cannot be written: {reason(error, trial)}",
            hint="write to another directory",
        ) from error
    with suppress(FileNotFoundError):  # a run that starts there has tidied it away
        trial.rmdir()


def check_apart(output: Path, *read: Path, hint: str = "choose another place: -o OUT") -> None:
    """Raise `SoraError` where writing an output would change an input.

    Links, `..` and other names of one place make no difference.

    Args:
        output: a file or directory to write.
        read: directories and files that are read; what is not there is passed over.
        hint: what to do instead.
    """
    above = _places(output)
    for place in filter(os.path.lexists, read):
        around = _places(place)
        if above[0] == around[0]:
            raise SoraError(f"{output} is what is read here: it would be overwritten", hint=hint)
        if around[0] in above:
            raise SoraError(f"{output} lies in what is read here: {place}", hint=hint)
        if above[0] in around:
            raise SoraError(f"{output} holds what is read here: {place}", hint=hint)


def _places(path: Path) -> list[object]:
    """Return the identities of a path and each directory above it, on this disk if it is there."""
    real = Path(os.path.realpath(path))
    found: list[object] = []
    for part in (real, *real.parents):
        try:
            facts = part.stat()
            found.append((facts.st_dev, facts.st_ino))  # the same where names differ in case only
        except OSError:
            found.append(part)
    return found
