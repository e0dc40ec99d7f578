"""The same training run in one process on a whole batch, and in two on a half each."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from methods.base import AdapterMethod, LowRankLinear, StepInfo
from methods.errors import MethodError
from methods.inject import inject
from methods.registry import create
from tests.helpers_methods import EXAMPLES
from tests.launched import launch

WORLD = 2
STEPS = 12
LR = 0.02

Wrap = Callable[[nn.Module], nn.Module]
"""Spreads a model over the processes; returns what is called in its place."""


@dataclass(frozen=True)
class Case:
    """A method and its options."""

    method: str
    options: Mapping[str, Any]


ADALORA = {"target_r": 2, "t_init": 2, "t_final": 3, "orth_weight": 0.1}
SORA = {"threshold": 0.065, "l1": 0.1, "gate_lr": 0.07}
CASES = {
    **{name: Case(name, options) for name, options in EXAMPLES.items()},
    "adalora": Case("adalora", {"init_r": 5, **ADALORA}),
    "adalora, rank 1": Case("adalora", {"init_r": 1, **ADALORA, "target_r": 0.5, "delta_t": 3}),
    "cut": Case("cut", {"r_max": 5, "target_r": 1.5, "cut_at": 8}),
    "cut, energy": Case("cut", {"r_max": 3, "energy": 0.9}),
    "sora": Case("sora", {"r_max": 3, **SORA}),
    "sora, official": Case("sora", {"r_max": 5, **SORA, "prox": "official", "threshold": 0.0325}),
    "sora, rank 1": Case("sora", {"r_max": 1, **SORA}),
    "sora, soft": Case("sora", {"r_max": 3, "gate_lr": 0.07, "target_r": 1.5, "shrink": "soft"}),
    "sora, hard": Case("sora", {"r_max": 5, "l1": 0.1, "target_r": 0.7, "gate_init": "ones"}),
}
"""Odd ranks, and one below the number of processes; components die, and some come back."""


@dataclass
class Training:
    """A model being adapted, and what is known of each step.

    Attributes:
        loss: of this process's part of the batch, by what is called in the model's place.
        log: of each step: the task loss, the penalty, the gradients' norm, which gates are alive.
        gradients: of the last step, whole, by the parameters' names.
    """

    model: nn.Module
    called: nn.Module
    loss: Callable[[nn.Module], Tensor]
    method: AdapterMethod
    layers: dict[str, LowRankLinear]
    optimizer: torch.optim.Optimizer
    log: list[dict[str, Any]] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def train(self, steps: Iterable[int]) -> None:
        """Take those (0-based) steps."""
        for step in steps:
            loss = self.loss(self.called)
            penalty = self.method.penalty(self.layers)
            (loss if penalty is None else loss + penalty).backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
            self.optimizer.step()
            info = StepInfo(step, STEPS, rates, self.optimizer.state)
            self.method.after_step(self.layers, info)
            if step == STEPS - 1:
                found = {name: p.grad for name, p in self.trained()}
                self.gradients = {n: whole(g).clone() for n, g in found.items() if g is not None}
            self.optimizer.zero_grad()
            self.log.append(
                {
                    "loss": loss.item(),
                    "penalty": 0.0 if penalty is None else penalty.item(),
                    "norm": whole(norm).item(),
                    "alive": {path: alive(layer) for path, layer in self.layers.items()},
                }
            )

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, gradients, factors and the method's state, all whole."""
        found = {f"parameter {n}": whole(p.detach()) for n, p in self.trained()}
        found |= {f"gradient {n}": g for n, g in self.gradients.items()}
        found |= {f"state {n}": t for n, t in self.method.state_dict().items()}
        for path, layer in self.layers.items():
            factors = self.method.factors(layer)
            found |= {f"factors {path}.A": factors.A, f"factors {path}.B": factors.B}
        return found

    def words(self) -> dict[str, Any]:
        """The method's summary of the run, and its log."""
        summary = self.method.summary(self.layers)
        return {
            "log": self.log,
            "summary": [summary.live, summary.total, *summary.events],
            "details": self.method.details(self.layers),
            "deliverable": self.method.deliverable(self.layers),
        }

    def save(self, folder: Path, name: str) -> None:
        """Write all that is compared, as this process sees it."""
        name = f"{name}-{distributed.get_rank()}"
        tensors = {n: t.contiguous().clone() for n, t in self.tensors().items()}
        save_file(tensors, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(self.words()))


def begun(
    case: Case,
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    *,
    wrap: Wrap | None = None,
    seed: int = 0,
) -> Training:
    """A run before its first step.

    Args:
        wrap: called when the adapters are in, with several processes.
        seed: of the adapters.
    """
    method = create(case.method, **case.options)
    layers = inject(model, method, generator=torch.Generator().manual_seed(seed))
    called = model if wrap is None else wrap(model)
    optimizer = torch.optim.AdamW(method.param_groups(layers, lr=LR, weight_decay=0.01))
    method.begin(layers, total_steps=STEPS)
    return Training(model, called, loss, method, layers, optimizer)


class PartlyUsed(nn.Module):
    """A net (whatever -> 4) and, after it, a linear layer that the loss does not use."""

    def __init__(self, used: nn.Module) -> None:
        super().__init__()
        self.used, self.unused = used, nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.used(x)
        return y


def check_unused_is_refused(
    used: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], wrap: Wrap
) -> None:
    """Every process says so, also one that holds no row of what has no gradient.

    Without a penalty: DistributedDataParallel takes no gradients of parameters it found unused.
    """
    begun(Case("lora", {}), PartlyUsed(used()), loss, wrap=wrap).train(range(2))
    for case in (
        Case("sora", {"r_max": 1}),
        Case("adalora", {"init_r": 1, "target_r": 1, "orth_weight": 0}),
    ):
        run = begun(case, PartlyUsed(used()), loss, wrap=wrap)
        with pytest.raises(MethodError, match=rf"{case.method}: unused\.A has no gradient"):
            run.train(range(2))


def my_part(batch: Tensor) -> Tensor:
    """This process's half of a batch (rows, ...), or all of it outside of a group of processes."""
    return batch.chunk(WORLD)[distributed.get_rank()] if distributed.is_initialized() else batch


def in_processes(work: Callable[[Path], None], folder: Path) -> None:
    """Run a function (of a module, by its name) of the folder in two processes that are a group.

    Their texts have different hashes, as those of two machines: no order may depend on them.
    """
    done = launch("-m", __name__, work.__module__, work.__name__, str(folder))
    assert done.returncode == 0, done.stderr[-6000:]


def _process(module: str, name: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    getattr(importlib.import_module(module), name)(Path(folder))
    distributed.destroy_process_group()


def check_equal(folder: Path, name: str, alone: Training, *, atol: float) -> None:
    """Both processes ended, and went through, what one process alone did."""
    tensors, words = alone.tensors(), alone.words()
    halves = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(WORLD)]
    for rank, said in enumerate(halves):
        where = f"{name}, process {rank}"
        found = load_file(folder / f"{name}-{rank}.safetensors")
        assert found.keys() == tensors.keys(), where
        for key, tensor in tensors.items():
            off = (found[key].double() - tensor.double()).abs().max() if tensor.numel() else 0.0
            assert off <= (atol if tensor.is_floating_point() else 0), f"{where}: {key}, by {off}"
        for key in ("summary", "details", "deliverable"):
            assert same(said[key], words[key], atol), f"{where}: {key}"
        for step, (one, other) in enumerate(zip(said["log"], words["log"], strict=True)):
            assert one["alive"] == other["alive"], f"{where}: gates after step {step}"
            for key in ("penalty", "norm"):
                assert abs(one[key] - other[key]) <= atol, f"{where}: {key} of step {step}"
    for step, other in enumerate(words["log"]):
        mean = sum(said["log"][step]["loss"] for said in halves) / WORLD
        assert abs(mean - other["loss"]) <= atol, f"{name}: loss of step {step}"


def same(one: Any, other: Any, atol: float) -> bool:
    """Tell whether plain data are equal, numbers with a fraction up to atol."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= atol
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(same(a, b, atol) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return all(same(value, other[key], atol) for key, value in one.items())
    return bool(one == other)


def alive(layer: LowRankLinear) -> list[bool]:
    """Return which components have a gate that is not zero; empty if there are no gates."""
    return [] if layer.d is None else whole(layer.d.detach()).ne(0).tolist()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


if __name__ == "__main__":
    if os.environ["RANK"] == "1" and "PYTHONHASHSEED" not in os.environ:
        os.environ["PYTHONHASHSEED"] = "1"  # with it, `tests.warm` starts a new process
        os.execv(sys.executable, [sys.executable, "-m", "tests.methods.processes", *sys.argv[1:]])
    _process(*sys.argv[1:])
