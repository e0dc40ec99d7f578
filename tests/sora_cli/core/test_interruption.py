"""SIGINT and SIGTERM, sent to the real program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType

import pytest

from sora_cli.core import interruption
from sora_cli.core.boundary import guarded
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import Deferral, Interrupted, deferred
from sora_cli.report import read_report
from tests import warm
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe
from tests.matrix import rest_is_long
from tests.present import present
from tests.shared_files import ROOT
from tests.sora_cli.adapter.test_spectra import SHAPES, write_peft


def _python(code: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What a process of Python leaves."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def _start(*words: str, code: str = "", python: str = sys.executable) -> subprocess.Popen[str]:
    program = f"{code}\nfrom sora_cli.app import main\nmain()"
    return subprocess.Popen(
        [python, "-c", program, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


@pytest.mark.parametrize("number", rest_is_long([signal.SIGINT, signal.SIGTERM]))
def test_while_training(tmp_path: Path, number: signal.Signals) -> None:
    """A checkpoint of the step at hand, a report, the command to go on, the shell's exit code."""
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"max_steps": 100_000})
    words = ["train", str(recipe), "training.evaluate=no", "training.logging_steps=5"]
    process = _start(*words, python=warm.python())
    _read_until(process, "sora on ")
    threading.Timer(1.0, process.send_signal, [number]).start()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + number
    report = present(read_report(tmp_path / "out"))
    assert report.status == "interrupted"
    assert report.error == f"interrupted by {number.name}"
    if report.steps:
        path = tmp_path / "out" / "checkpoints" / f"step-{report.steps:06d}"
        assert (path / "complete.json").is_file()
        assert f"kept: {path}" in said
    assert f"sora train {recipe} training.evaluate=no training.logging_steps=5 --resume" in said
    assert "Traceback" not in said


def test_before_training_nothing_is_left(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    process = _start("train", str(recipe))
    _read_until(process, "loading torch")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_the_second_signal_does_not_wait() -> None:
    with deferred() as deferral:
        signal.raise_signal(signal.SIGTERM)
        assert deferral.received == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGINT)
    assert caught.value.exit_code == 130


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with deferred():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_get_no_handlers() -> None:
    found: list[Deferral] = []

    def work() -> None:
        with deferred() as deferral:
            found.append(deferral)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].received is None


AT_IMPORT = """
import signal, sys

class Sending:
    def find_spec(self, name, *_):
        if name == "{module}":
            sys.meta_path.remove(self)
            signal.raise_signal({number:d})

sys.meta_path.insert(0, Sending())
from sora_cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "number", "words"),
    [
        ("sora_cli.core.interruption", signal.SIGINT, ["schema"]),
        ("typer", signal.SIGINT, ["schema"]),
        ("typer", signal.SIGTERM, ["schema"]),
        ("pydantic", signal.SIGINT, ["schema"]),
        ("pydantic.types", signal.SIGTERM, ["recipes"]),
        ("torch", signal.SIGINT, ["train", "quickstart", "output.dir=runs/out"]),
        ("torch", signal.SIGINT, ["inspect", "a"]),
    ],
)
def test_while_modules_are_imported(
    tmp_path: Path, module: str, number: signal.Signals, words: list[str]
) -> None:
    """No traceback, nothing left behind: also where the lock of a run is held."""
    write_peft(tmp_path / "a", SHAPES)
    done = _python(AT_IMPORT.format(module=module, number=number), *words, cwd=tmp_path)
    assert done.returncode == 128 + number, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith(("loading", "note"))]
    assert said in ([f"interrupted by {number.name}"], [])
    assert bool(said) is (module != "sora_cli.core.interruption")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


WRITING = """
import signal, sys
from pathlib import Path
from sora_cli.core.atomic import new_directory
from sora_cli.core.interruption import raise_on_signals

class Sending:
    def find_spec(self, name, *_):
        signal.raise_signal(signal.SIGTERM)

raise_on_signals()
with new_directory(Path("out")) as folder:
    (folder / "x").touch()
    sys.meta_path.insert(0, Sending())
    import colorsys
"""


def test_what_is_half_written_while_a_module_is_imported_is_deleted(tmp_path: Path) -> None:
    done = _python(WRITING, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (143, "interrupted by SIGTERM\n")
    assert not list(tmp_path.iterdir())


NESTED = """
import os, signal
from sora_cli.core.interruption import end_on_signals, tidied
end_on_signals()
with tidied(lambda: os.write(1, b"outer\\n")), tidied(lambda: os.write(1, b"inner\\n")):
    signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_that_ends_the_process_at_once_tidies_all_blocks() -> None:
    done = _python(NESTED)
    assert (done.returncode, done.stdout) == (143, "inner\nouter\n")


SWALLOWED = """
import signal, sys, time
from sora_cli.core.boundary import guarded
from sora_cli.core.interruption import raise_on_signals

class Noisy:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def work():
    Noisy()
    time.sleep(600)

raise_on_signals()
sys.exit(guarded(work))
"""


def test_where_python_can_only_print_it() -> None:
    """An interruption in a finaliser is raised again outside of it, and not shown."""
    done = _python(SWALLOWED)
    assert (done.returncode, done.stderr) == (130, "interrupted by SIGINT\n")


HASHED = """
import signal, sys, time
from datasets import Dataset
from sora_cli.core.boundary import guarded
from sora_cli.core.interruption import raise_on_signals

class Sending:
    def __reduce__(self):
        signal.raise_signal(signal.SIGINT)
        return str, ("pickled",)

def work():
    sending = Sending()
    Dataset.from_dict({"a": [1]}).map(lambda row: {"b": repr(sending)})
    time.sleep(600)

raise_on_signals()
sys.exit(guarded(work))
"""


def test_while_datasets_makes_a_hash() -> None:
    """There any exception is taken for an object that cannot be pickled."""
    done = _python(HASHED)
    assert done.returncode == 130, done.stderr
    assert "hashed" not in done.stderr
    assert "interrupted by SIGINT" in done.stderr


def test_a_name_in_a_package_that_is_there_is_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls Python's import system, which loads nothing: the program may say what is kept."""

    def get(name: str) -> None:
        if name == "name":
            interruption._raise(signal.SIGTERM, sys._getframe())

    package = ModuleType("package")
    vars(package).update(__path__=[], __getattr__=get)
    monkeypatch.setitem(sys.modules, "package", package)
    monkeypatch.setattr(interruption, "_raised", [])
    monkeypatch.setattr(interruption, "_end", lambda *_: pytest.fail("at once"))
    with pytest.raises(Interrupted) as caught:
        exec("from package import name")
    calls = traceback.extract_tb(caught.tb)
    assert "_handle_fromlist" in [call.name for call in calls]


@pytest.mark.parametrize("error", [RuntimeError("Error calling __set_name__"), SoraError("x")])
def test_an_error_after_a_signal_is_its_consequence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interruption, "_raised", [])

    def work() -> None:
        try:
            interruption._raise(signal.SIGTERM, None)
        except Interrupted:
            raise error from None

    assert guarded(work) == 143
    assert capsys.readouterr().err == "interrupted by SIGTERM\n"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_that_prepare_batches(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches them, too: they leave it to the run, which writes its checkpoint."""
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"max_steps": 100_000})
    process = _start("train", str(recipe), "training.evaluate=no", "training.workers=2",
                     code="import os; os.setsid(); print('group', os.getpid(), flush=True)",
                     python=warm.python())  # fmt: skip
    group = int(_read_until(process, "group").split()[-1])
    _read_until(process, "sora on ")
    threading.Timer(4.0, os.killpg, [group, number]).start()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + number
    assert "kept: " in said
    assert "Traceback" not in said
