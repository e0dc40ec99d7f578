"""What `training.precision: auto` means on a device, and that it is settled once in a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import accelerate.utils
import pytest
import torch

from sora_cli.app import run
from sora_cli.recipe.load import LoadedRecipe, load_recipe
from sora_cli.run import precision
from sora_cli.run.precision import device_precision, settle_precision
from tests.helpers_device import computing_on
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, signal_at, train, write_recipe
from tests.sora_cli.experiments.sweep.support import write_sweep

AUTO = "training.precision=auto"


def _device(patched: pytest.MonkeyPatch, value: str) -> None:
    patched.setattr(precision, "device_precision", lambda: (value, "so it is here"))


def _value(loaded: LoadedRecipe) -> str:
    return loaded.recipe.training.precision


@pytest.mark.parametrize(
    ("capabilities", "value", "why"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16", "instructions for it (avx512_bf16)"),
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16", "(amx_bf16, avx512_bf16)"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32", "no instructions for bf16"),
        (None, "fp32", "torch knows of no"),  # a torch that does not tell
    ],
)
def test_a_processor(
    capabilities: dict[str, bool] | None, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing_on("cpu", monkeypatch)
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    found, reason = device_precision()
    assert found == value
    assert why in reason


@pytest.mark.parametrize(("there", "value"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_that_only_emulates_has_none(
    there: bool, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return there or including_emulation

    computing_on("cuda", monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert device_precision()[0] == value


def test_only_auto_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    _device(monkeypatch, "bf16")
    assert _value(settle_precision(load_recipe("quickstart"))) == "fp32"
    settled = settle_precision(load_recipe("quickstart", [AUTO]))
    assert _value(settled) == "bf16"
    assert str(settled.origin("training", "precision")) == "auto, command line"


def test_processes_take_bf16_only_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(other: str) -> Any:
        return lambda mine: [*mine, (other, "on the other")]

    _device(monkeypatch, "bf16")
    monkeypatch.setattr(precision, "world_size", lambda: 2)
    loaded = load_recipe("quickstart", [AUTO])
    monkeypatch.setattr(accelerate.utils, "gather_object", gathered("bf16"))
    assert _value(settle_precision(loaded)) == "bf16"
    monkeypatch.setattr(accelerate.utils, "gather_object", gathered("fp32"))
    settled = settle_precision(loaded)
    assert _value(settled) == "fp32"
    assert settled.notes[-1] == "training.precision: auto is fp32: on the other"


def test_a_run_equals_the_one_told_and_keeps_it_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = {"max_steps": 4, "evaluate": "no", "checkpoint": 1}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=block)
    train(recipe, "training.precision=bf16", f"output.dir={tmp_path / 'told'}")
    with monkeypatch.context() as patched:
        _device(patched, "bf16")
        signal_at(patched, 2, signal.SIGTERM)
        assert run(["train", str(recipe), "--no-verify", AUTO]) == 128 + signal.SIGTERM
    stored = next((tmp_path / "out" / "checkpoints").glob("*/run.json"))
    assert json.loads(stored.read_text())["recipe"]["training"]["precision"] == "bf16"
    _device(monkeypatch, "fp32")
    report = train(recipe, AUTO, "--resume")
    assert report.resumed
    assert report.recipe["training"]["precision"] == "bf16"
    assert "auto is bf16: the run was started with it" in report.recipe_notes[-1]
    assert files_of(tmp_path / "out" / "adapter") == files_of(tmp_path / "told" / "adapter")


def test_the_dry_run_says_what_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    _device(monkeypatch, "bf16")
    assert run(["train", str(recipe), "--dry-run", AUTO]) == 0
    shown = capsys.readouterr()
    assert "note: training.precision: auto is bf16: so it is here" in shown.err
    line = next(line for line in shown.out.splitlines() if "training.precision" in line)
    assert line.split(maxsplit=2)[1:] == ["bf16", "auto, command line"]


def test_commands_that_make_many_runs_refuse_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = str(write_sweep(tmp_path, grid={"training.seed": [0, 21]}))
    for words in (["path", "path/rte"], ["auto", "quickstart", "--max-drop", "1pt"]):
        refused(capsys, *words, AUTO)
    refused(capsys, "sweep", sweep, AUTO)
