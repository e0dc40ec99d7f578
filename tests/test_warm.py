"""A process of `tests.warm` is what a new one of Python is, but for what is imported already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import warm

PROBE = """
import json, os, sys
where = [sys.argv, sys.path, os.getcwd(), dict(os.environ), __name__]
print(json.dumps([*where, sys.stdin.read(), os.umask(0), len(os.listdir("/proc/self/fd"))]))
"""
LOADED = "import sys; print([name in sys.modules for name in ('transformers', 'sora_cli')])"
ENDS = [
    "",
    "raise SystemExit(3)",
    "raise SystemExit('words')",
    "raise KeyError('x')",
    "import os; os.kill(os.getpid(), 9)",
    "import os; os.abort()",
    "import atexit; atexit.register(print, 'last'); print('first')",
]


def said(python: str, *words: str, **options: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the last line of standard error."""
    done = subprocess.run(
        [python, *words], capture_output=True, text=True, env=os.environ | options
    )
    return done.returncode, done.stdout, done.stderr.splitlines()[-1:]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="nothing is forked beside a GPU")
@pytest.mark.parametrize(("threads", "loaded"), [("1", True), ("2", False)])
def test_what_is_imported_already(threads: str, loaded: bool) -> None:
    """Packages and nothing of ours; nothing where a variable says something else to them."""
    options = {"OMP_NUM_THREADS": threads}
    assert said(warm.python(), "-c", LOADED, **options) == (0, f"[{loaded}, False]\n", [])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="nothing is forked beside a GPU")
def test_what_a_server_imports_that_another_one_forked() -> None:
    """This project, too; and it is found again where a process starts one of its own."""
    assert said(warm.python(warm.OURS), "-c", LOADED) == (0, "[True, True]\n", [])
    again = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LOADED!r}])"
    assert said(warm.python(warm.OURS), "-c", again) == (0, "[True, True]\n", [])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="nothing is forked beside a GPU")
def test_pytests_own_processes_have_forks_of_their_own() -> None:
    """They start new processes of Python, and find the servers of the process that started them."""
    code = "import sys; print('torch' in sys.modules, sys.executable); "
    again = "from tests import warm; print(warm.python())"
    assert said(warm.worker(), "-c", code + again) == (
        0, f"True {sys.executable}\n{warm.python()}\n", [],
    )  # fmt: skip


@pytest.mark.parametrize("words", [["probe.py"], ["-u", "-m", "probe"], ["-c", PROBE]])
def test_where_it_finds_itself(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    found = [
        json.loads(subprocess.check_output(
            [python, *words, "a", "b c"], text=True, cwd=tmp_path, input="typed", umask=0o27,
            env={**os.environ, "SORA_X": "y", "PYTHONPATH": "/nowhere:/other"},
        ))
        for python in (sys.executable, warm.python(), warm.python(warm.OURS))
    ]  # fmt: skip
    new = found[0]
    assert new[1][1:3] == ["/nowhere", "/other"]
    for forked in found[1:]:
        added = forked[3].keys() - new[3].keys()
        assert all(name.startswith(("KMP_", "TORCH", "SKLEARN")) for name in added), added
        forked[3] = {n: v for n, v in forked[3].items() if n not in added}
        assert forked == new


@pytest.mark.parametrize("code", ENDS)
def test_how_it_ends(code: str) -> None:
    assert said(warm.python(), "-c", code) == said(sys.executable, "-c", code)


def test_unbuffered() -> None:
    code = "import os; print('here', end=''); os.kill(os.getpid(), 9)"
    assert said(warm.python(), "-u", "-c", code) == (-9, "here", [])


def test_signals_reach_it() -> None:
    # not `signal.pause`: a signal that comes just before it is seen only after it
    code = """import signal, time
signal.signal(15, lambda *_: exit(7))
print(flush=True)
while True:
    time.sleep(0.1)"""
    with subprocess.Popen([warm.python(), "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(60) == 7


def test_it_is_killed_with_its_client() -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen([warm.python(), "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert number != process.pid
        process.kill()
        assert process.stdout.read() == b""  # it held this stream
    assert process.returncode == -signal.SIGKILL
