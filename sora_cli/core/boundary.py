"""Error boundary: turns an exception into at most three lines on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import typer

from methods.errors import MethodError
from sora_cli.core.console import complain, printable, say
from sora_cli.core.errors import SoraError, WaitingError, first_mistake
from sora_cli.core.exit_codes import FAILED, INTERRUPTED, LABELS_WANTED, OK, USER_ERROR
from sora_cli.core.interruption import Interrupted, swallowed
from sora_cli.core.out_of_memory import describe, ran_out
from sora_cli.core.processes import is_main
from sora_cli.core.removed import removed_flag
from sora_cli.core.streams import lost_output

_DISK_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG,
}  # fmt: skip
"""File errors that the user can put right: they are not faults of the program."""

_LESS = "fewer rows at once, shorter rows, or a smaller base model"
_OF_THE_SYSTEM = re.compile(r"\(os error (\d+)\)")  # the notation of libraries written in Rust
_NO_TEMPORARY = "No usable temporary directory"
"""tempfile's message if the disk is full, or if files are limited to 0 bytes."""

_ClickError = typer.BadParameter.__mro__[2]
"""Base class of Typer's usage errors. Typer moved it between packages from version to version."""


def guarded(command: Callable[[], object], *, debug: bool = False) -> int:
    """Call a command and return its exit code.

    Args:
        command: a return value of type int is the exit code; any other counts as 0.
        debug: show tracebacks, also for user errors.
    """
    try:
        result = command()
    except Interrupted as end:
        return _interrupted(end)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted", always=True)
        return INTERRUPTED
    except WaitingError as wanted:
        say()
        for line in wanted.lines:
            say(line, always=True)
        return LABELS_WANTED
    except Exception as error:
        signal = swallowed()
        return _report(error, debug=debug) if signal is None else _interrupted(signal)
    return result if isinstance(result, int) else OK


def report_lost_output(code: int) -> int:
    """Report at a command's end if data for stdout were lost; return the final exit code."""
    reason = lost_output()
    if reason is None:
        return code
    return _user_error([f"stdout cannot be written: {reason.lower()}"], debug=False)


def _interrupted(end: Interrupted) -> int:
    for line in (str(end), *end.words):
        say(line, always=True)
    return end.exit_code


def _report(error: Exception, *, debug: bool) -> int:
    if isinstance(error, SoraError):
        _user_error(error.lines(), debug=debug)
        return error.exit_code
    if isinstance(error, MethodError):
        return _user_error([str(error)], debug=debug)
    if isinstance(error, _ClickError):
        return _usage_error(error)
    if ran_out(error):
        return _user_error([describe(error), _LESS], debug=debug)
    if isinstance(error, OSError) and (lines := _disk_error(error)):
        return _user_error(lines, debug=debug)
    number = _OF_THE_SYSTEM.search(str(error))
    if number is not None and int(number[1]) in _DISK_ERRORS:
        reason = os.strerror(int(number[1])).lower()
        return _user_error([f"a file cannot be used: {reason}"], debug=debug)
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return _user_error([first_mistake(error)], debug=debug)
    from sora_cli.core.versions import version_error

    explained = version_error(error)
    if explained is not None:
        return _user_error(explained.lines(), debug=debug)
    return _internal_error(error, debug=debug)


def _disk_error(error: OSError) -> list[str]:
    """Return the message for a file, or for the directory of temporary files, that fails."""
    if error.errno in _DISK_ERRORS:
        name = "a file" if error.filename is None else f"'{printable(error.filename)}'"
        return [f"{name} cannot be used: {(error.strerror or str(error)).lower()}"]
    if _NO_TEMPORARY in str(error):
        return [
            "no temporary file can be written",
            str(error.strerror),
            "choose another directory: TMPDIR=DIR",
        ]
    return []


def _usage_error(error: Any) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "sora"
    entry = removed_flag(command, getattr(error, "option_name", None) or "")
    if entry is not None:
        lines = [entry.gone(), entry.instead, f"try: {command} --help"]
        return _user_error(lines, debug=False)
    return _user_error([printable(error.format_message()), f"try: {command} --help"], debug=False)


def _user_error(lines: Sequence[str], *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    flat = [line for text in lines for line in text.splitlines() if line.strip()]
    # all processes meet the same error: one line from each is enough
    for i, line in enumerate(flat[: 3 if is_main() else 1]):
        complain(f"{'error:' if i == 0 else ' '} {printable(line)}")
    return USER_ERROR


def _internal_error(error: Exception, *, debug: bool) -> int:
    text = " ".join(str(error).split())
    complain(f"error: internal error: {type(error).__name__}: {text}"[:300])
    if debug:
        traceback.print_exc()
        return FAILED
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="sora-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
        complain(f"  the traceback is in {log.name}")
    except OSError:
        complain("  no log could be written; --debug shows the traceback")
    complain("  this is a fault of the program, not of your input; please report it with that file")
    return FAILED
