"""Imports what takes seconds, then forks a process for every client that asks for one.

    server.py MODULE    imported, too, unless it is empty

It listens at the socket that is its standard output, and ends when standard input does.

Forks of one thread are sound. The packages are imported with one thread (OMP_NUM_THREADS=1) and
do nothing else here; if one of them has started a thread, or found a GPU, clients are sent away.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import random
import re
import runpy
import selectors
import signal
import socket
import sys
import types
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

PACKAGES = (
    "numpy.random", "torch", "transformers.trainer", "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama",
    "datasets", "evaluate", "safetensors.torch", "scipy.io", "scipy.stats", "sklearn.datasets",
    "sklearn.metrics", "sklearn.model_selection",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "torch.distributed.tensor",
    "torch.distributed.run", "typer", "yaml", "pydantic.dataclasses", "pydantic.json_schema",
    "pydantic.types", "jinja2", "packaging.requirements", "PIL.PngImagePlugin",
)  # fmt: skip
RENDEZVOUS = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"
FREE = re.compile(
    "(PATH|PYTHONPATH|PWD|OLDPWD|SHLVL|_|COLUMNS|LINES|NO_COLOR|PYTEST_.*|SORA_.*|MASTER_(ADDR|PORT)"
    "|(GROUP_|LOCAL_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|TORCHELASTIC_.*"
    "|TORCH_NCCL_ASYNC_ERROR_HANDLING|TORCHINDUCTOR_CACHE_DIR|TOKENIZERS_PARALLELISM"
    "|TQDM_.*|[A-Z_]+_VERBOSITY|[A-Z_]+_DISABLE_PROGRESS_BARS)=.*|MKL_NUM_THREADS=1?"
    "|PYTHONUNBUFFERED=1|RAY_.*|PYTHONBREAKPOINT=ray\\..*|SPT_NOENV=1|[A-Z_]+_VISIBLE_[A-Z]+="
    "|VLLM_LOGGING_LEVEL=.*"
)
"""Variables (and values) that may differ from the server's.

They are read later than in an import, or say how much is shown; or TRL or Ray, which is not
imported here, sets them.
"""


def is_sound() -> bool:
    """Tell whether a fork of this process does what a new process would do."""
    import torch

    threads = list(Path("/proc/self/task").iterdir())
    return len(threads) == 1 and not torch.accelerator.is_available()


def serve(listening: socket.socket, environment: dict[str, str]) -> dict[str, Any]:
    """Fork for every client; return, in the fork alone, what it is to do."""
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:
                os._exit(0)
            elif key.fileobj is listening:
                asked = _accept(listening, selector, environment)
                if asked is not None:
                    return asked
            elif selector.get_map().get(key.fd) is key:  # not closed a moment ago
                _ended(selector, key)


def _accept(
    listening: socket.socket, selector: selectors.BaseSelector, here: dict[str, str]
) -> dict[str, Any] | None:
    connection, _ = listening.accept()
    with suppress(OSError, ValueError):
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        asked = json.loads(connection.makefile(encoding="utf-8").readline())
        new = asked["environment"]
        sides = here, os.environ  # as it was, and what packages have set
        other = {n for n in {*new, *here} if new.get(n) not in [side.get(n) for side in sides]}
        if not all(FREE.fullmatch(f"{name}={new.get(name, '')}") for name in other):
            connection.close()
        elif (pid := os.fork()) == 0:
            for each in [key.fileobj for key in selector.get_map().values()]:
                os.close(each) if isinstance(each, int) else each.close()
            selector.close()
            connection.close()
            for i, descriptor in enumerate(descriptors):
                os.dup2(descriptor, i)
                os.close(descriptor)
            return asked
        else:
            pidfd = os.pidfd_open(pid)
            selector.register(pidfd, selectors.EVENT_READ, (pid, connection))
            selector.register(connection, selectors.EVENT_READ, pid)
            connection.sendall(f"{pid}\n".encode())
        for descriptor in descriptors:
            os.close(descriptor)
    return None


def _ended(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Tell a client how its process ended; end the process of a client that was killed."""
    selector.unregister(key.fileobj)
    if isinstance(key.data, int):
        os.kill(key.data, signal.SIGKILL)
        return
    pid, connection = key.data
    _, status = os.waitpid(pid, 0)
    os.close(key.fd)
    with suppress(KeyError):
        selector.unregister(connection)
    with suppress(OSError):
        connection.sendall(f"{status}\n".encode())
    connection.close()


def become(words: list[str], program: str, directory: str, environment: dict[str, str], umask: int,
           base: list[str]) -> None:  # fmt: skip
    """Be the process that Python would be if it were started with these words."""
    import numpy as np

    os.chdir(directory)
    os.umask(umask)
    for name in {*os.environ} - {*environment}:
        if FREE.fullmatch(f"{name}="):
            del os.environ[name]
    os.environ.update(environment)  # what packages have set is kept
    random.seed()
    np.random.seed()
    sys.executable = program
    sys.path[:] = [*_places(environment), *base]
    if unbuffered := words[0] == "-u":
        words = words[1:]
    if unbuffered or "PYTHONUNBUFFERED" in environment:
        sys.stdout, sys.stderr = _unbuffered(sys.stdout), _unbuffered(sys.stderr)
    first, *rest = words
    sys.argv = words if first not in ("-m", "-c") else [first, *rest[1:]]
    if first == "-m":
        sys.path.insert(0, directory)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


def _unbuffered(stream: TextIO) -> TextIO:
    raw = open(stream.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115 (until the end)
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, write_through=True)  # type: ignore


def _places(environment: dict[str, str]) -> list[str]:
    return [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]


def _started_with() -> dict[str, str]:
    """Return the variables before packages set some, also in a server that another one forked."""
    lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(os.fsdecode(line).split("=", 1) for line in lines if line)


def main() -> None:
    """Import, serve, and, in a fork, do what is asked."""
    environment = _started_with()
    base = sys.path[1 + len(_places(environment)) :]
    code: int | None = None

    def end() -> None:  # Python would first free a million objects, for a second
        if code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    atexit.register(end)  # before all others, to be called after them
    listening = socket.socket(fileno=os.dup(1))
    os.dup2(2, 1)  # for what a package may print
    gc.disable()
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow's would be a thread
    for package in filter(None, (*PACKAGES, sys.argv[1])):
        importlib.import_module(package)
    # the first model that a process loads has some hundred patterns compiled
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")
    # torchrun's records of its events name the method, and look through all modules for it
    vars(importlib.import_module(RENDEZVOUS))["get_method_name"] = str
    del os.environ["JE_ARROW_MALLOC_CONF"]
    gc.freeze()
    gc.enable()
    if not is_sound():
        sys.exit()
    asked = serve(listening, environment)
    try:
        become(**asked, base=base)
        code = 0
    except SystemExit as exit:
        # Python prints words, and ends with 1
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        raise
    except Exception:  # Python prints it
        code = 1
        raise


if __name__ == "__main__":
    main()
