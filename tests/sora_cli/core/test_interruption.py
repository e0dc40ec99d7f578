"""SIGINT and SIGTERM, sent to the real program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sora_cli.core.interruption import Deferral, Interrupted, deferred
from sora_cli.report import read_report
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe
from tests.shared_files import ROOT


def _start(*words: str, code: str = "") -> subprocess.Popen[str]:
    program = f"{code}\nfrom sora_cli.app import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_training(tmp_path: Path, number: signal.Signals) -> None:
    """A checkpoint of the step at hand, a report, the command to go on, the shell's exit code."""
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"max_steps": 100_000})
    process = _start("train", str(recipe), "training.evaluate=no", "training.logging_steps=5")
    _read_until(process, "sora on ")
    threading.Timer(1.0, process.send_signal, [number]).start()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    report = read_report(tmp_path / "out")
    assert report is not None
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
    said = process.communicate(timeout=60)[0]
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
