"""`training.kernels: liger`: where it is refused; its numbers are `interpreted_kernels`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.recipe.load import load_recipe
from sora_cli.train import kernels
from sora_cli.train.kernels import LigerKernels
from tests.helpers_device import computing_on
from tests.helpers_errors import refused
from tests.helpers_models import tiny_llama
from tests.helpers_runs import write_recipe
from tests.shared_files import ROOT

INTERPRETED = ROOT / "tests/sora_cli/train/interpreted_kernels.py"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, tiny_llama(num_labels=2), training={"kernels": "liger"})


@pytest.mark.parametrize("package", ["liger-kernel", "triton"])
def test_a_package_that_is_missing(
    recipe: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = package.replace("-", "_")
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if name == there else object())
    refused(capsys, "train", recipe)


def test_where_it_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda _: object())
    computing_on("cpu", monkeypatch)
    loaded = load_recipe(recipe, []).recipe
    LigerKernels().check_recipe(loaded)
    with pytest.raises(SoraError, match="needs a GPU: a CPU cannot run Triton kernels"):
        LigerKernels().check_machine(loaded)
    computing_on("cuda", monkeypatch)
    LigerKernels().check_machine(loaded)
    with pytest.raises(SoraError, match=r"does not go with training\.compile"):
        LigerKernels().check_recipe(load_recipe(recipe, ["training.compile=true"]).recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SoraError, match="one process only"):
        LigerKernels().check_recipe(loaded)


@pytest.mark.long
@pytest.mark.skipif(
    find_spec("liger_kernel") is None or find_spec("triton") is None, reason="not installed"
)
def test_the_kernels_in_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", str(INTERPRETED)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
