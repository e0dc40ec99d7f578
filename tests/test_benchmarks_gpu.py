"""`benchmarks.gpu` at a tiny size: its rows, its check of gradients, its budget, its profile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.launches import Launches, summed
from benchmarks.gpu.rows import ROWS
from benchmarks.gpu.shapes import TINY as TINY_SHAPE
from benchmarks.gpu.shapes import write
from methods import fused
from sora_cli.recipe.load import load_recipe
from tests import warm
from tests.shared_files import ROOT

TINY = ("--tiny", "--rounds", "1")
FEW = ("bf16, checkpointing", "short rows, packed", "4-bit base")


def printed(*words: str) -> str:
    command = [warm.python(), "-m", "benchmarks.gpu", *TINY, *words]
    environment = {**warm.ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the program in this process."""
    monkeypatch.setattr(program, "keep_freed_memory", lambda: True)  # it is for good
    monkeypatch.setattr(sys, "argv", ["gpu", *TINY, *words])
    return program.main()


def check_rows(shown: str, titles: list[str]) -> None:
    """Each row has a time, two ratios, tokens, memory and gradients that are right."""
    lines = [line.strip("| ").split(" | ") for line in shown.splitlines() if " (0.9" in line]
    lines += [line.strip("| ").split(" | ") for line in shown.splitlines() if " (1.0" in line]
    figures = {cells[0]: cells[1:] for cells in lines}
    assert sorted(figures) == sorted(titles)
    for cells in figures.values():
        assert len(cells) == 7
        assert all(re.match(r"[\d.,]+", cell) for cell in cells)
        assert float(cells[-1].split()[0]) > 0.999
    assert "WRONG" not in shown


def test_rows_and_their_gradients() -> None:
    pytest.importorskip("bitsandbytes")
    shown = printed("--rows", *FEW)
    check_rows(shown, list(FEW))
    assert "none on a CPU" in shown
    for end in ("Not reached within the minutes", "Skipped", "Failed"):
        assert f"\n{end}:\n- nothing" in shown


def test_each_row_is_a_recipe(tmp_path: Path) -> None:
    recipe = write(TINY_SHAPE, tmp_path / "tiny", "cpu")
    assert len({row.title for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert load_recipe(recipe, list(row.words))


@pytest.mark.long
def test_a_wrong_gradient_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner: Any = fused._gradients_for_up
    monkeypatch.setattr(
        fused, "_gradients_for_up", lambda *args: (1.05 * inner(*args)[0], inner(*args)[1])
    )
    assert run(["--rows", "bf16", "fp32"], monkeypatch) == 1
    assert capsys.readouterr().out.count("**WRONG**: error 0.0") == 2


def test_rows_that_are_not_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--minutes", "0.1"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "\nNot reached within the minutes:\n- tiny, " in shown
    assert shown.count("\n- tiny, ") == len(ROWS)


def test_a_row_that_cannot_run_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sora_cli.model.quantisation.find_spec", lambda _: None)
    assert run(["--rows", "4-bit base"], monkeypatch) == 0
    assert re.search(r"\nSkipped:\n- tiny, 4-bit base .*not installed", capsys.readouterr().out)


def test_launches_of_a_profile() -> None:
    """The GPU is busy where any stream is; annotations are no work."""
    gpu, cpu = DeviceType.CUDA, DeviceType.CPU
    events = [
        _event("aten::mm", cpu, 0, 900),
        _event("cudaLaunchKernel", cpu, 10, 15),
        _event("cudaMemcpyAsync", cpu, 20, 22),
        _event("gemm", gpu, 100, 400),
        _event("copy", gpu, 300, 500),
        _event("gemm", gpu, 600, 700),
        _event("step", gpu, 0, 1000, activity_type="gpu_user_annotation"),
    ]
    assert summed(events) == Launches(calls=2, calls_ms=0.007, busy_ms=0.5)


def _event(name: str, device: Any, begin: float, end: float, **more: str) -> SimpleNamespace:
    times = SimpleNamespace(start=begin, end=end)
    return SimpleNamespace(name=name, device_type=device, time_range=times, **more)
