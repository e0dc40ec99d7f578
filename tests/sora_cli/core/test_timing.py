"""The clock that starts with the process, imports without the collector, and leaving."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sora_cli.core import timing
from sora_cli.core.timing import command_start, importing, process_start, start_with_process
from tests.shared_files import ROOT


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_the_clock_starts_with_the_process() -> None:
    code = (
        "import time; time.sleep(0.4)\n"
        "from sora_cli.core.timing import process_start\n"
        "print(time.perf_counter() - process_start())"
    )
    start = time.perf_counter()
    done = _python(code)
    whole = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert 0.4 < float(done.stdout) <= whole + 0.02  # the system counts in 1/100 s


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "Path", lambda _: Path("/nowhere/at/all"))
    monkeypatch.setattr(time, "perf_counter", lambda: 50.0)
    monkeypatch.setattr(time, "process_time", lambda: 2.0)
    assert process_start() == 48


def test_a_command_begins_with_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_state", {})
    monkeypatch.setattr(time, "perf_counter", lambda: 50.0)
    assert command_start() == 50
    monkeypatch.setattr(timing, "process_start", lambda: 48.0)
    start_with_process()
    assert command_start() == 48


def test_the_collector_waits_for_imports_only(capsys: pytest.CaptureFixture[str]) -> None:
    timing._announce.cache_clear()  # commands of other tests ran in this process
    with importing():
        assert not gc.isenabled()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert capsys.readouterr().err == "loading torch and transformers ...\n"
    with pytest.raises(ZeroDivisionError), importing():
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_what_was_imported_first_is_not_looked_at_later() -> None:
    done = _python(
        "import gc, sys, types\n"
        "from sora_cli.core.timing import uncollected\n"
        "with uncollected():\n"
        "    sys.modules['torch'] = types.ModuleType('torch')\n"
        "print(gc.get_freeze_count() > 1000, gc.isenabled())\n"
        "gc.unfreeze()\n"
        "with uncollected():\n"
        "    pass\n"
        "print(gc.get_freeze_count(), gc.isenabled())"
    )
    assert done.stdout.split() == ["True", "True", "0", "True"], done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("lambda: 0", 0),
        ("lambda: 2", 2),
        ("lambda: sys.exit(3)", 3),
        ("lambda: sys.exit()", 0),
        ("lambda: sys.exit('why')", 1),
        ("lambda: 1 / 0", 1),
    ],
)
def test_leaving_with_a_code_after_everything_registered(command: str, code: int) -> None:
    done = _python(
        "import atexit, sys, threading, time\n"
        "from sora_cli.core.timing import leave_with\n"
        "def work():\n"
        "    time.sleep(0.3); print('thread', flush=True)\n"
        "class Late:\n"
        "    def __del__(self): print('freed')\n"
        "late = Late()\n"
        "def command():\n"
        "    atexit.register(lambda: sys.stdout.write('registered '))\n"
        "    threading.Thread(target=work).start()\n"
        "    sys.stdout.write('output ' * 1000)\n"
        f"    return ({command})()\n"
        "leave_with(command)"
    )
    assert done.returncode == code, done.stderr
    words = done.stdout.split()
    assert words.count("output") == 1000
    assert words[-1] == "registered"  # nothing is lost, and nothing is freed after that
    assert "thread" in words
    assert ("ZeroDivisionError" in done.stderr) is ("1 / 0" in command)
