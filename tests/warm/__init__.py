"""Python processes that need not import torch and transformers: forked from one that has.

`python()` is called in place of `sys.executable`. Each call of it is a process of its own, forked
from a server (`server.py`) in which other people's packages are imported and nothing of this
project is: ours are imported anew, in the order of the command. Between caller and process stands
`client.py`: it sends signals on, and ends as the process does, by a signal, too. pytest's own
processes are forked from the same server (`worker()`), and all of them have their forks from the
servers that one of them has started.

Where a fork could differ from a new process (other variables that packages read when they are
imported, options of Python, a terminal, a GPU), a new process is started instead. But what decides
how much packages show (`--quiet`), and how (the format of bars), comes too late for them. Tests of
that, of the start itself and of imports need `sys.executable`, and so does one process of several
that must agree whatever their hash seeds are, and one run whose memory is measured: a fork shares
some of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

_HERE = Path(__file__).parent
OURS = "tests.warm.ours"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""The variables as this process found them, before packages and commands set some of their own."""

_CLIENT = """\
#!{python} -IS
import sys
sys.path.insert(0, {here!r})
from client import main
main(*{facts}, *sys.argv[1:])
"""
_SHARED = "PYTEST_WARM"
"""The variable with the folder of the servers, in all processes of a run of the tests."""
_ALIVE = "alive"
_kept: list[Any] = []


class Sys:
    """`sys`, where `sys.executable` is `python(OURS)`."""

    def __getattr__(self, name: str) -> Any:
        return python(OURS) if name == "executable" else getattr(sys, name)


@cache
def _folder() -> Path:
    """Return the folder of the servers, which end with the process that has made it."""
    if named := os.environ.get(_SHARED):
        return Path(named)
    made = tempfile.TemporaryDirectory(prefix="sora-warm-")  # removed when the process ends
    os.mkfifo(alive := Path(made.name, _ALIVE))
    _kept.extend((made, os.open(alive, os.O_RDWR)))  # closed when the process ends
    return Path(made.name)


@cache
def python(module: str = "", path: str = "") -> str:
    """The path of a program that takes what Python takes; the first call waits for the server.

    Args:
        module: what is imported there as well.
        path: where that is found before all other places.
    """
    folder = _folder() / (module or "packages")
    program, address = folder / "python", folder / "socket"
    with FileLock(f"{folder}.lock"):
        if program.exists():
            return str(program)
        folder.mkdir()
        _write(program, address, program)
        with (
            socket.socket(socket.AF_UNIX) as listening,
            folder.with_name(_ALIVE).open("rb") as alive,
        ):
            listening.bind(str(address))
            listening.listen(64)
            subprocess.Popen(
                [python() if module else sys.executable, str(_HERE / "server.py"), module],
                stdin=alive,
                stdout=listening,
                env=ENVIRONMENT | ({"PYTHONPATH": path} if path else {}),
                start_new_session=True,
            )
        subprocess.run([program, "-c", ""], check=True, capture_output=True)
    return str(program)


def worker() -> str:
    """The path of a program for pytest's own processes, whose `sys.executable` is Python itself.

    They find this process's servers.
    """
    folder = Path(python()).parent
    os.environ[_SHARED] = str(folder.parent)
    _write(program := folder / "worker", folder / "socket", Path(sys.executable))
    return str(program)


def _write(program: Path, address: Path, name: Path) -> None:
    """Write a program that is called `name` where it says who it is."""
    facts = [str(each) for each in (address, sys.executable, name)]
    program.write_text(_CLIENT.format(python=sys.executable, here=str(_HERE), facts=facts))
    program.chmod(0o755)
