"""Real processes killed with SIGKILL, at any time and inside each kind of write, and resumed.

What nobody disturbs is a new process of Python, and all others are forks of `tests.warm`: their
hash seeds differ, and their imports take no time in which a kill could hit nothing of ours.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from methods.registry import low_rank_names
from sora_cli.report import read_report
from tests import warm
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, timeless, write_recipe
from tests.shared_files import ROOT

MOMENTS = 6
KILLED = -9
OPTIONS: dict[str, list[str]] = {
    "adalora": ["method.target_r=2", "method.init_r=4", "method.t_init=4", "method.t_final=8"]
}
WRITES = [
    ("report.json", 1), ("report.json:rename", 1),  # when training begins
    ("report.json", 2), ("report.json:rename", 2),  # when it has ended
    ("history.json", 1), ("history.json:rename", 1), ("history.json", 2),
    ("state.safetensors", 3), ("trainer_state.json", 3), ("run.json", 2), ("complete.json", 2),
    ("step-000014:rename", 1), ("step-:delete", 1),
    ("adapter_model.safetensors", 1), ("adapter_config.json", 1), ("sora.json", 1),
    ("/adapter:rename", 1), ("ranks.png", 1), ("ranks.png:rename", 1),
]  # fmt: skip
"""What is being written, and for which time, when the process dies."""


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed."""

    recipe: Path
    words: list[str]
    seconds: float
    adapter: dict[str, bytes]
    report: dict[str, Any]


def _environment() -> dict[str, str]:
    return {**warm.ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _start(
    *arguments: str, module: str = "sora_cli", python: str | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python or warm.python(), "-m", module, *arguments],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> None:
    output = process.communicate()[0]
    assert process.returncode == 0, output


def _train(whole: Whole, place: Path, *words: str) -> subprocess.Popen[str]:
    options = [*whole.words, "--no-verify", f"output.dir={place}", *words]
    return _start("train", str(whole.recipe), *options)


@pytest.fixture(scope="module", params=sorted(low_rank_names()))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    model = tiny_bert(num_labels=2)
    training = {"epochs": 3, "model_dropout": 0.1, "evaluate": 10, "checkpoint": 7}
    recipe = write_recipe(folder, model, rows=123, training=training, method={"dropout": 0.1})
    words = [f"method.name={request.param}", *OPTIONS.get(request.param, [])]
    train = ["train", str(recipe), *words, "--no-verify"]
    _end(_start(*train, f"output.dir={folder / 'out'}", python=sys.executable))
    began = time.monotonic()
    _end(_start(*train, f"output.dir={folder / 'warm'}"))
    seconds = time.monotonic() - began
    report = read_report(folder / "out")
    assert report is not None
    return Whole(recipe, words, seconds, files_of(folder / "out" / "adapter"), timeless(report))


def _assert_resumed(whole: Whole, place: Path) -> None:
    _end(_train(whole, place, "--resume"))
    assert files_of(place / "adapter") == whole.adapter
    report = read_report(place)
    assert report is not None
    assert timeless(report) == whole.report
    names = {path.name for path in place.iterdir()}
    assert names == {"adapter", "checkpoints", "history.json", "ranks.png", "report.json"}


def _assert_survives_kill_at(whole: Whole, place: Path, share: float) -> int:
    """The exit code of the killed process; 0 if it was faster."""
    process = _train(whole, place)
    try:
        process.wait(timeout=share * whole.seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    _assert_resumed(whole, place)
    return process.returncode


def _assert_survives_kill_in(whole: Whole, place: Path, kind: str, number: int) -> None:
    words = ["train", str(whole.recipe), *whole.words, "--no-verify", f"output.dir={place}"]
    process = _start(kind, str(number), *words, module="tests.killed")
    output = process.communicate()[0]
    assert process.returncode == KILLED, output
    _assert_resumed(whole, place)


@pytest.mark.long
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_at_any_time(whole: Whole, tmp_path: Path, moment: int) -> None:
    """Uniform over the wall time of the whole process, from its start to its end."""
    _assert_survives_kill_at(whole, tmp_path / "cut", (moment + 0.5) / MOMENTS)


@pytest.mark.long
@pytest.mark.parametrize("whole", ["sora"], indirect=True)
@pytest.mark.parametrize(("kind", "number"), WRITES)
def test_killed_inside_a_write(whole: Whole, tmp_path: Path, kind: str, number: int) -> None:
    _assert_survives_kill_in(whole, tmp_path / "cut", kind, number)


@pytest.mark.long
def test_killed_inside_a_checkpoint(whole: Whole, tmp_path: Path) -> None:
    _assert_survives_kill_in(whole, tmp_path / "cut", "state.safetensors", 3)


PATH_WRITES = [
    ("path.json", 2),  # stage 0 is trained, its record half written
    ("path.json:rename", 3),
    ("stages/00/.state.safetensors", 1),
    ("stages/01/.report.json", 1),
    ("stages/01/adapter:rename", 1),
    ("stages/01/.state.safetensors:rename", 1),
    (".path.png", 1),
]


def _path(recipe: Path, place: Path) -> list[str]:
    return ["path", str(recipe), f"output.dir={place}"]


@pytest.fixture(scope="module")
def whole_path(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A path of three stages that nobody disturbed: its recipe, and the adapters."""
    folder = tmp_path_factory.mktemp("path")
    schedule = {"kind": "linear", "start": 0, "stop": 0.04, "num": 3}
    recipe = write_recipe(
        folder,
        tiny_bert(num_labels=2),
        training={"epochs": 1, "model_dropout": 0.1},
        method={"dropout": 0.1},
        path={"vary": "method.threshold", "schedule": schedule},
    )
    _end(_start(*_path(recipe, folder / "out"), python=sys.executable))
    return recipe, _adapters(folder / "out")


def _adapters(place: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(place).items() if "/adapter/" in name}


@pytest.mark.long
@pytest.mark.parametrize(("kind", "number"), PATH_WRITES)
def test_path_killed_inside_a_write(
    whole_path: tuple[Path, dict[str, bytes]], tmp_path: Path, kind: str, number: int
) -> None:
    recipe, expected = whole_path
    words = _path(recipe, tmp_path / "cut")
    process = _start(kind, str(number), *words, module="tests.killed")
    output = process.communicate()[0]
    assert process.returncode == KILLED, output
    _end(_start(*words))
    assert len(expected) == 3 * 6  # configuration, weights, facts, card, two of the tokenizer
    assert _adapters(tmp_path / "cut") == expected
    assert not [name for name in files_of(tmp_path / "cut") if "partial" in name]
