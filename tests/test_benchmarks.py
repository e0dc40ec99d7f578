"""The benchmarks run and print a line for everyone compared. Their figures mean nothing here."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import busy
from benchmarks.faster import use_faster_products
from tests import smollm2, warm
from tests.helpers_chat import instruct_rows
from tests.helpers_families import retrieval_rows
from tests.helpers_runs import write_glue, write_rows
from tests.shared_files import ROOT

OURS = ("LoRA", "SoRA", "AdaLoRA")


def printed(program: str, *words: str, path: Path | None = None) -> str:
    """What a benchmark prints; its processes find packages in `path` before all other places."""
    command = [warm.python(warm.OURS), "-m", f"benchmarks.{program}", "--quick", *words]
    environment = {**warm.ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_steps() -> None:
    shown = printed("step", "--model", "encoder", "--dropout", "0")
    # not imported: `benchmarks.models` sets variables that other tests' processes would inherit
    for side in ("floor", "torch floor", "PEFT LoRA", "plain SoRA", "PEFT AdaLoRA", *OURS):
        assert f"\n| {side} | " in shown
    assert "PEFT AdaLoRA: " in shown


def test_parts_of_a_step() -> None:
    """The floor has all parts but the factors' products; the parts add up to the step."""
    shown = printed("parts", "--model", "encoder", "--sides", "floor", "LoRA")
    rows = [line.strip("| ").split(" | ") for line in shown.splitlines() if line.startswith("| ")]
    floor, lora = ({row[0]: float(row[i]) for row in rows[2:]} for i in (1, 2))
    assert floor["products of the factors"] == 0 < lora["products of the factors"]
    assert floor["products of frozen layers"] > 0 < lora["products of frozen layers"]
    for parts in (floor, lora):
        assert abs(2 * parts["all"] - sum(parts.values())) <= len(parts)


@pytest.mark.parametrize("contiguous", [True, False])
def test_the_floors_layers_compute_what_linear_layers_do(contiguous: bool) -> None:
    """Whichever library is taken, and with a gradient for the input alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 8, bias=False))
    faster = copy.deepcopy(model.requires_grad_(False))
    use_faster_products(faster)
    x = torch.randn(5, 96, 7).mT if not contiguous else torch.randn(5, 7, 96)
    outputs = []
    for side in (model, faster):
        inputs = x.clone().requires_grad_()
        y = side(inputs)
        y.square().sum().backward()
        outputs.append((y, inputs.grad))
    for expected, found in zip(*outputs, strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(isinstance(layer, nn.Linear) for layer in faster)


@pytest.mark.long
def test_memory() -> None:
    sides = ("floor", "SoRA", "plain SoRA")
    shown = printed("memory", "--model", "encoder", "--dropout", "0", "--sides", *sides)
    rows = [line.split(" | ") for line in shown.splitlines() if " MB | " in line]
    assert [row[0] for row in rows] == [f"| {side}" for side in sides]
    tensors = {row[0]: float(row[4].rstrip(" |")) for row in rows}
    assert tensors["| floor"] == 1
    assert 1 < tensors["| SoRA"] < tensors["| plain SoRA"]


@pytest.mark.long
def test_ranks() -> None:
    shown = printed("rank", "--ranks", "4")
    for row in ("none removed", "nine tenths removed", "4 | counted only", "4 | every 25"):
        assert f"| {row} | " in shown


@pytest.mark.long
def test_files() -> None:
    shown = printed("files")
    for command in ("inspect bfloat16", "prune bfloat16 --rank 16", "export bfloat16"):
        assert f"\n| sora {command} | " in shown
    assert "\nsora train quickstart --dry-run / import torch, transformers, peft: " in shown


@pytest.mark.long
def test_budgets() -> None:
    shown = printed("budgets", "--model", "encoder")
    for side in ("LoRA", "LoRA, cut at 80 %", "SoRA with a budget"):
        assert f"\n| {side} | " in shown


@pytest.mark.long
def test_whole_searches() -> None:
    shown = printed("auto")
    assert "\n| sora auto | " in shown
    assert "\n| LoRA | " in shown
    assert re.search(r"sora auto: [12] sizes of \d steps each, \d+ rows screen and \d+ test", shown)


@pytest.mark.long
def test_runs(tmp_path: Path) -> None:
    glue = write_glue(tmp_path / "glue", rows=24, tasks=("rte",))
    shown = printed("run", "--data", str(glue), "--methods", "sora", "--no-verify")
    assert "\n| sora | " in shown
    assert "train " in shown


@pytest.mark.long
def test_preferences(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    package = smollm2.small(tmp_path_factory).parents[1]
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", instruct_rows(3))
    shown = printed("preferences", "--data", str(tmp_path), path=package)
    for row in ("causal-lm", "preference", "sora train"):
        assert f"\n| {row} | " in shown
    assert ", reference " in shown


@pytest.mark.long
def test_embeddings(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", retrieval_rows(32))
    shown = printed("embeddings", "--data", str(tmp_path))
    for row in ("sora", "MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"):
        assert f"\n| {row} | " in shown


@pytest.mark.parametrize("program", ["rank", "instructions", "startup"])
def test_help(program: str) -> None:
    command = [warm.python(), "-m", f"benchmarks.{program}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=warm.ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


def test_products() -> None:
    assert "\n| x W^T, W 384 x 384 | " in printed("products")


@pytest.mark.long
def test_predict_memory() -> None:
    shown = printed("predict_memory")
    assert "\n| 2,000 | " in shown
    assert "\n| 8,000 | " in shown


def test_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each way beside each number of loops, in turns; the loops run only meanwhile."""
    seen: list[tuple[dict[str, str], int]] = []
    one = {"OMP_NUM_THREADS": "1"}

    def train(_run: Path, way: dict[str, str], _steps: int) -> tuple[float, str]:
        seen.append((way, len(loops)))
        return 2.0 + len(loops), str(way == one)

    loops: list[object] = []
    monkeypatch.setattr(busy.subprocess, "Popen", lambda *_: loops.append(0) or Loop())

    class Loop:
        def kill(self) -> None:
            loops.pop()

        def wait(self) -> None:
            pass

    monkeypatch.setattr(busy, "train", train)
    words = ["--rounds", "2", "--loops", "0", "2", "--turns", "3000"]
    monkeypatch.setattr(sys, "argv", ["busy", *words])
    busy.main()
    ways = [*busy.WAYS.values(), {"GOMP_SPINCOUNT": "3000"}]
    assert seen == [*((way, n) for n in (0, 2) for way in ways)] * 2
    shown = capsys.readouterr().out
    assert "\n| one thread | 2.0 (2.0 to 2.0) | 4.0 (4.0 to 4.0) |" in shown
    assert "1 with all threads, 1 with one, 2 together." in shown
