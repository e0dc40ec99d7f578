"""Each switch of training: a whole run with it against the same run without it.

A run computes on this folder's device, unless only a CPU (or a real GPU) has the switch's code: a
compiler, bitsandbytes' kernels, another attention. Liger's kernels are compared with the model's
own layers in `tests/sora_cli/train/interpreted_kernels.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.utils import counters

from sora_cli.core.device import device_module, device_type, is_accelerated
from sora_cli.model import activation_offload
from sora_cli.report import RunReport
from sora_cli.tasks import learned
from sora_cli.train import compiled
from sora_cli.train.checkpoint.files import newest_checkpoint
from sora_cli.train.kernels import LigerKernels
from sora_cli.train.switches import SWITCHES
from tests import flash_attention
from tests.helpers_chat import write_chat_recipe
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe
from tests.rehearsal import fake
from tests.rehearsal.watch import LOOSER, on_cpu

GATES = {"r_max": 4, "threshold": 0.0, "betas": [0.5, 0.9], "gate_eps": 1e-6}
CODED = {"r_max": 128, "threshold": 0.08, "gate_lr": 1e-4}
"""Factors that are large enough for 8 bits, and gates that die and stay dead."""


def _encoder(folder: Path, method: dict[str, Any], **training: Any) -> Path:
    block = {"epochs": 2, "logging_steps": 1, "model_dropout": 0.0, **training}
    model = tiny_bert(num_labels=2)
    return write_recipe(folder, model, rows=14, method=method, training=block)


RECIPES: dict[str, Callable[[Path], Path]] = {
    "dropout": lambda folder: _encoder(folder, {**GATES, "dropout": 0.1}, model_dropout=0.1),
    "encoder": lambda folder: _encoder(folder, GATES),
    "dying gates": lambda folder: _encoder(folder, {"threshold": 0.3}),
    "large factors": lambda folder: _encoder(folder, CODED, compact_every=3, epochs=6,
                                             max_grad_norm=0.0),
    "packed": lambda folder: write_chat_recipe(
        folder, rows=16, method=GATES, task={"packing": True, "metrics": ["loss"]},
        training={"epochs": 2, "batch_size": 4, "logging_steps": 1, "model_dropout": 0.0,
                  "loss": "logits"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        peak: bytes on the device that it took at most; 0 of a run on the CPU.
    """

    folder: Path
    report: RunReport
    peak: int

    @classmethod
    def of(cls, recipe: Path, folder: Path, *words: str) -> Run:
        gc.collect()
        if not is_accelerated():
            return cls(folder, train(recipe, *words, f"output.dir={folder}"), 0)
        device_module().reset_peak_memory_stats()
        before = device_module().memory_allocated()
        report = train(recipe, *words, f"output.dir={folder}")
        return cls(folder, report, device_module().max_memory_allocated() - before)

    def losses(self) -> list[float]:
        keys = ("loss", "eval_loss")
        return [entry[key] for entry in self.report.history for key in keys if key in entry]

    def numbers(self) -> Tensor:
        """All numbers of the adapter's file."""
        stored = load_file(self.folder / "adapter" / "adapter_model.safetensors")
        return torch.cat([stored[name].flatten().double() for name in sorted(stored)])

    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's; gates have the betas and the eps of their method."""
        state, _ = newest_checkpoint(self.folder / "checkpoints")
        assert state is not None
        gates = next(group for group in state.run["optimizer"] if group["name"] == "gates")
        assert (list(gates["betas"]), gates["eps"]) == ([0.5, 0.9], 1e-6)
        return list(state.run["optimizer"])


# ---- what a switch does beside the same numbers: prepared, and told from both runs afterwards

Patch = pytest.MonkeyPatch
Acts = Callable[[Run, Run], bool]


def nothing_to_see(_patch: Patch) -> Acts:
    return lambda _switched, _plain: True


def saves_memory(_patch: Patch) -> Acts:
    return lambda switched, plain: switched.peak < plain.peak


def offloads(patch: Patch) -> Acts:
    patch.setattr(activation_offload, "SMALLEST", 64)
    moved: list[bool] = []
    inner = activation_offload.to_host

    def to_host(tensor: Tensor) -> Tensor:
        copy = inner(tensor)
        moved.append(tensor.device.type == device_type() and copy.device.type == "cpu")
        return copy

    options = {"on": True, "move": to_host}
    patch.setattr(activation_offload.offloaded.__wrapped__, "__kwdefaults__", options)
    return lambda switched, plain: len(moved) > 40 and all(moved) and switched.peak < plain.peak


def compiles(patch: Patch) -> Acts:
    if not fake.REAL:  # whole graphs of both passes; a C++ compiler would take half a minute
        patch.setattr(compiled, "BACKEND", "aot_eager")
        patch.setattr(compiled.Compilation, "check_machine", lambda *_: None)
    counters.clear()
    return lambda *_: counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]


def stands_in(patch: Patch) -> Acts:
    flash_attention.stand_in(patch)
    return lambda *_: flash_attention.calls["lengths"] > 0


def unfused(_patch: Patch) -> Acts:
    return lambda switched, plain: (
        not any(group["fused"] for group in switched.groups())
        and all(group["fused"] for group in plain.groups())
    )


def in_chunks(patch: Patch) -> Acts:
    called: list[int] = []
    inner = learned.losses_in_chunks

    def losses_in_chunks(*args: Any) -> Tensor:
        called.append(1)
        return inner(*args)

    patch.setattr(learned, "losses_in_chunks", losses_in_chunks)
    return lambda *_: len(called) > 0


def removes_as_many(_patch: Patch) -> Acts:
    def removed(run: Run) -> int:
        assert run.report.compaction is not None
        return run.report.compaction.removed

    return lambda switched, plain: removed(switched) > 0 and removed(plain) > 0


@dataclass(frozen=True)
class Case:
    """A switch.

    Attributes:
        words: overrides that turn it on.
        cpu: without a real accelerator the runs compute on the CPU.
        far: largest |a - b| / |b| of each loss, and of all numbers of the adapters together.
        other: the numbers cannot be the same; equal ones mean that it did nothing.
        acts: what it does beside.
        needs: a package.
    """

    words: str
    recipe: str = "encoder"
    cpu: bool = False
    far: float = 1e-3
    other: bool = False
    acts: Callable[[Patch], Acts] = nothing_to_see
    needs: str | None = None


BNB = "bitsandbytes"
FLASH = "model.attention=flash_attention_2"
CASES = [
    Case("training.gradient_checkpointing=true", "dropout", acts=saves_memory),
    Case("training.activation_offload=true", "dropout", acts=offloads),
    Case("training.deterministic=true", "dropout"),
    Case("training.gradient_accumulation=2 training.workers=1 training.compact_every=1 "
         "training.non_finite=skip", "dying gates"),
    Case("training.micro_batch=auto"),
    Case("training.optimizer=adamw_unfused", acts=unfused),
    Case("training.precision=bf16", far=0.2, other=True),
    Case("training.loss=chunked", "packed", cpu=True, acts=in_chunks),
    Case("training.compile=true", cpu=True, acts=compiles),
    Case("model.attention=eager", cpu=True),
    Case(FLASH, cpu=True, acts=stands_in),
    Case(FLASH, "packed", cpu=True, acts=stands_in),
    Case("training.optimizer=adamw_8bit", "large factors", cpu=True, far=0.2, other=True,
         acts=removes_as_many, needs=BNB),
    Case("model.quantise=4bit", cpu=True, far=1.0, other=True, needs=BNB),
    Case("model.quantise=8bit", cpu=True, far=1.0, other=True, needs=BNB),
]  # fmt: skip


def test_every_switch_has_a_case() -> None:
    keys = {word.partition("=")[0] for case in CASES for word in case.words.split()}
    assert {switch.KEY for switch in SWITCHES} - keys == {LigerKernels.KEY}


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[Path, Run]]:
    """The recipe of a name and its run without a switch, made once for each device."""

    @cache
    def made(name: str, _on_cpu: bool) -> tuple[Path, Run]:
        folder = tmp_path_factory.mktemp("plain")
        recipe = RECIPES[name](folder)
        return recipe, Run.of(recipe, folder / "out")

    return made


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.words}, {case.recipe}")
def test_a_run_with_a_switch(
    case: Case,
    plain_run: Callable[[str, bool], tuple[Path, Run]],
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    if case.needs is not None and find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    with on_cpu() if case.cpu and not fake.REAL else nullcontext():
        recipe, plain = plain_run(case.recipe, is_accelerated())
        acted = case.acts(monkeypatch)
        switched = Run.of(recipe, tmp_path / "out", *case.words.split())
    pairs = zip(switched.losses(), plain.losses(), strict=True)
    numbers, same = switched.numbers(), plain.numbers()
    apart = [*(abs(a - b) / abs(b) for a, b in pairs), float((numbers - same).norm() / same.norm())]
    assert max(apart) <= case.far * LOOSER, f"{case.words} differs: {apart}"
    assert max(apart) > 0 or not case.other, f"{case.words} changes nothing"
    assert acted(switched, plain), f"{case.words} has done nothing"
