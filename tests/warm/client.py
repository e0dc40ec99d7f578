"""What stands for a process of the server: it passes on signals, and its end is the process's."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from typing import TextIO

PASSED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1}


def main(address: str, python: str, program: str, *words: str) -> None:
    """Have a process do it, and end as it does.

    Args:
        address: of the server's socket.
        python: called where the server cannot help.
        program: what `sys.executable` is in the process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    connection = socket.socket(socket.AF_UNIX)
    answers = connection.makefile("r", encoding="utf-8")
    shown = (0, 1) if program == python else (0, 1, 2)  # pytest's processes print no progress
    forked = _can_be_forked(words) and not any(os.isatty(descriptor) for descriptor in shown)
    pid = _ask(connection, answers, address, program, words) if forked else 0
    if not pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.execv(python, [python, *words])
    for number in PASSED_ON:
        signal.signal(number, lambda n, _: _pass_on(pid, n))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # one that comes just before Python waits for the answer would be seen only after it
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    told = answers.readline()
    if not told:  # the server has ended
        os._exit(1)
    status = int(told)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _pass_on(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended; its status is on the way
        os.kill(pid, number)


def _can_be_forked(words: tuple[str, ...]) -> bool:
    """Tell whether a module, code or a file is to be run, with open streams."""
    try:
        for descriptor in (0, 1, 2):
            os.fstat(descriptor)
    except OSError:  # closed
        return False
    first = words[1:2] if words[:1] == ("-u",) else words[:1]
    return len(first) > 0 and (first[0] in ("-m", "-c") or not first[0].startswith("-"))


def _ask(
    connection: socket.socket, answers: TextIO, address: str, program: str, words: tuple[str, ...]
) -> int:
    """Return the process's number; 0: it must be a new one."""
    umask = os.umask(0)
    os.umask(umask)
    asked = {
        "program": program,
        "words": words,
        "directory": os.getcwd(),  # noqa: PTH109 (pathlib takes longer to import)
        "environment": dict(os.environ),
        "umask": umask,
    }
    try:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(json.dumps(asked).encode() + b"\n")
        return int(answers.readline() or 0)
    except OSError:
        return 0
