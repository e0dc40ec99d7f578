"""Every method under FSDP2 (`fully_shard`): two processes train a Llama as one does unsharded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from methods.errors import MethodError
from methods.inject import inject
from methods.registry import create
from tests.helpers_models import tiny_llama, token_ids
from tests.methods import test_ddp
from tests.methods.processes import (
    CASES,
    STEPS,
    WORLD,
    Case,
    Training,
    Wrap,
    begun,
    check_equal,
    check_unused_is_refused,
    in_processes,
    my_part,
)

HALF = STEPS // 2
TARGETS = ["q_proj", "up_proj", "down_proj"]  # their inputs: norms' and products' outputs
RUNS = [
    ("lora", ""),
    ("adalora", "resumed"),  # half-way
    ("adalora", "not freed"),  # parameters stay whole between the forward and the backward pass
    ("adalora, rank 1", ""),
    ("cut", "resumed"),
    ("cut, energy", ""),
    ("sora", "resumed"),
    ("sora", "not freed"),
    ("sora, official", "checkpointing"),  # activations are computed again
    ("sora, rank 1", ""),
    ("sora, soft", "resumed"),
    ("sora, hard", ""),
]


def loss(model: nn.Module) -> Tensor:
    rows = my_part(token_ids())
    logits = model(input_ids=rows, use_cache=False).logits  # (rows, length, vocabulary)
    return cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def shard(model: nn.Module, *, free: bool = True) -> nn.Module:
    """Each decoder layer, then the rest.

    Args:
        free: whole parameters after the forward pass, to gather them again for the backward.
    """
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=free)
    return fully_shard(model, reshard_after_forward=free)


def started(case: Case, how: str = "", *, wrap: Wrap | None = None, seed: int = 0) -> Training:
    model = tiny_llama().double().train()
    if how == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    case = replace(case, options={**case.options, "targets": TARGETS})
    return begun(case, model, loss, wrap=wrap, seed=seed)


def resumed(halted: Training, case: Case) -> Training:
    """A newly sharded model, of other adapters, at the state of the halted run."""
    run = started(case, wrap=shard, seed=99)
    run.model.load_state_dict(halted.model.state_dict())
    run.optimizer.load_state_dict(halted.optimizer.state_dict())
    run.method.load_state_dict(halted.method.state_dict())
    run.log = halted.log
    return run


def train_all(folder: Path) -> None:
    for name, how in RUNS:
        run = started(CASES[name], how, wrap=partial(shard, free=how != "not freed"))
        run.train(range(HALF))
        if how == "resumed":
            run = resumed(run, CASES[name])
        run.train(range(HALF, STEPS))
        run.save(folder, f"{name} {how}")
        check_sharded(run)
    for kind in (nn.LayerNorm, Rms):
        for free in (True, False):
            check_norm_of_another_group(kind, free=free)
    check_unused_is_refused(test_ddp.net, test_ddp.loss, fully_shard)
    check_fsdp1_is_refused()


def check_sharded(run: Training) -> None:
    """Parameters and gradients are DTensors, and this process has no more than its rows."""
    run.loss(run.called).backward()
    for name, p in run.model.named_parameters():
        grad = p.grad if p.requires_grad else p
        assert isinstance(p, DTensor), f"{name} is not sharded"
        assert isinstance(grad, DTensor), f"the gradient of {name} is not sharded"
        rows = [-(-p.shape[0] // WORLD), p.shape[0] // WORLD][distributed.get_rank()]
        assert len(p.to_local()) == len(grad.to_local()) == rows, f"{name}: not {rows} rows"


class Rms(nn.Module):
    """Llama's norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, u: Tensor) -> Tensor:
        return self.weight * (u * torch.rsqrt(u.square().mean(-1, keepdim=True) + 1e-6))


def ending_in_a_norm(kind: type[nn.Module]) -> nn.Module:
    """Adapted layers, of which "1" and "3" come after "0", which ends in a norm."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6), kind(6))
    model = nn.Sequential(first, nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    nn.init.normal_(first[3].weight)
    layers = inject(model, create("sora", r_max=3), generator=torch.Generator().manual_seed(0))
    for layer in layers.values():
        nn.init.normal_(layer.B)
    return model


def check_norm_of_another_group(kind: type[nn.Module], *, free: bool) -> None:
    """FSDP may free the norm's weight before the layer that the norm feeds is called."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone, model = ending_in_a_norm(kind), ending_in_a_norm(kind)
    alone(x).square().mean().backward()
    fully_shard(model[0], reshard_after_forward=free)
    fully_shard(model)
    model(my_part(x)).square().mean().backward()
    for (name, p), whole in zip(model.named_parameters(), alone.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(
                p.grad.full_tensor(), whole.grad, rtol=1e-12, atol=1e-12, msg=name
            )


def check_fsdp1_is_refused() -> None:
    """It flattens parameters: a gate's row and column are no longer known."""
    wrap = partial(FullyShardedDataParallel, use_orig_params=True, device_id=torch.device("cpu"))
    for name in ("lora", "adalora", "sora", "cut"):
        method = create(name)
        model = test_ddp.net()
        layers = inject(model, method, generator=torch.Generator().manual_seed(0))
        wrap(model)
        with pytest.raises(MethodError, match=r"were flattened, as FSDP1 does; .*fully_shard"):
            method.summary(layers)


@pytest.mark.long
def test_two_processes_train_what_one_does_unsharded(tmp_path: Path) -> None:
    """Losses, norms, which gates are alive after each step, and everything at the end."""
    assert {name for name, _ in RUNS} == set(CASES)
    in_processes(train_all, tmp_path)
    alone: dict[str, Training] = {}
    for name, how in RUNS:
        if name not in alone:
            alone[name] = started(CASES[name])
            alone[name].train(range(STEPS))
        check_equal(tmp_path, f"{name} {how}", alone[name], atol=1e-10)
