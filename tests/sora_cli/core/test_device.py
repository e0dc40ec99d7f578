"""The one place that asks for the device, with each answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sora_cli.core import device
from sora_cli.core.environment import environment, peak_memory
from sora_cli.run.micro_batch import available_memory
from sora_cli.train.checkpoint import generators
from tests.helpers_device import computing_on


@pytest.mark.parametrize(
    ("named", "kind", "cuda"),
    [("cpu", "cpu", False), ("cuda", "cuda", True), ("xpu", "xpu", False), ("mps", "cpu", False)],
)
def test_the_device(named: str, kind: str, cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    computing_on(named, monkeypatch)
    assert device.device_type() == kind
    assert device.is_accelerated() == (kind != "cpu")
    assert device.is_cuda() == cuda
    assert device.device_module() is getattr(torch, kind)


@pytest.mark.parametrize(("named", "on_cpu"), [("cpu", True), ("cuda", False)])
def test_the_state_of_the_process(
    named: str, on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing_on(named, monkeypatch)
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: SimpleNamespace(cpu=cpu))
    assert device.process_state().cpu == on_cpu


class Module:
    """What an accelerator's module has of torch's functions."""

    def __init__(self) -> None:
        self.random, self.emptied = torch.tensor([1], dtype=torch.uint8), 0

    def current_device(self) -> int:
        return 3

    def get_device_name(self) -> str:
        return "a card"

    def max_memory_allocated(self) -> int:
        return 50

    def memory_reserved(self) -> int:
        return 20

    def mem_get_info(self) -> tuple[int, int]:
        return 30, 100

    def empty_cache(self) -> None:
        self.emptied += 1

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return self.random

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        self.random = state


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Module:
    computing_on("xpu", monkeypatch)
    module = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    return module


def test_its_memory_and_its_name(accelerated: Module) -> None:
    assert (peak_memory(), available_memory(), environment()["gpu"]) == (50, 50, "a card")
    device.empty_cache()
    assert accelerated.emptied == 1


def test_on_a_cpu_there_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    computing_on("cpu", monkeypatch)
    device.empty_cache()
    device.device_module().synchronize()
    assert environment()["gpu"] is None
    assert (peak_memory() or 0) > 1e8  # of a process that has loaded torch
    assert generators.torch_states().keys() == {"torch"}


def test_its_random_numbers(accelerated: Module) -> None:
    before, others = generators.torch_states(), generators.other_states()
    assert before.keys() == {"torch", "xpu"}
    with device.forked_random():
        accelerated.random, _ = torch.zeros(1), torch.rand(1)
    assert torch.equal(accelerated.random, before["xpu"])
    assert torch.equal(torch.get_rng_state(), before["torch"])
    accelerated.random = torch.zeros(1)
    generators.restore(before, others)
    assert torch.equal(accelerated.random, before["xpu"])


@pytest.mark.usefixtures("accelerated")
def test_a_checkpoint_of_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    states, others = generators.torch_states(), generators.other_states()
    computing_on("cpu", monkeypatch)
    generators.restore(states, others)  # what is the accelerator's is left out
