"""Helpers for sharded factors, and what cannot be done with them, in a group of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from methods.compaction import DeadSteps, remove_components
from methods.errors import MethodError
from methods.inject import inject
from methods.kept import keep
from methods.registry import create
from methods.sharding import is_sharded, joined, like, local, whole
from tests.methods.support import Run, generator, small_net, start


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def sharded(tensor: Tensor) -> DTensor:
    return distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Shard(0)])


def sharded_run() -> Run:
    run = start(create("sora", r_max=3))
    fully_shard(run.net)
    return run


def test_tensors_that_are_not_sharded_are_themselves() -> None:
    t, p = torch.arange(3.0), nn.Parameter(torch.ones(2))
    assert not is_sharded(t)
    assert not is_sharded(p)
    assert whole(p) is p
    assert local(p) is p
    assert like(t, torch.zeros(3)) is t
    assert like(t, torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
    assert joined([t, p]).tolist() == [0, 1, 2, 1, 1]


@pytest.mark.usefixtures("group")
def test_whole_and_local_tensors() -> None:
    values = torch.arange(6.0).view(3, 2)
    t = sharded(values)
    assert is_sharded(t)
    assert type(whole(t)) is Tensor
    assert torch.equal(whole(t), values)
    local(t).fill_(7.0)  # the same memory
    assert torch.equal(whole(t), torch.full((3, 2), 7.0))
    assert joined([sharded(torch.ones(2)), torch.zeros(1)]).tolist() == [1, 1, 0]


@pytest.mark.usefixtures("group")
def test_a_whole_tensor_is_sharded_like_another() -> None:
    target = sharded(torch.zeros(3, 2, dtype=torch.float64))
    found = like(torch.arange(6.0).view(3, 2), target)
    assert isinstance(found, DTensor)
    assert (found.dtype, found.placements) == (torch.float64, target.placements)
    assert whole(found).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert like(found, target) is found
    assert type(like(found, torch.zeros(3, 2))) is Tensor


@pytest.mark.usefixtures("group")
def test_the_gradient_of_a_whole_tensor() -> None:
    t = sharded(torch.ones(3)).requires_grad_()
    (whole(t) * torch.arange(3.0)).sum().backward()
    assert isinstance(t.grad, DTensor)
    assert t.grad.placements == (Shard(0),)
    assert t.grad.full_tensor().tolist() == [0, 1, 2]
    copies = distribute_tensor(torch.ones(2), t.device_mesh, [Replicate()])
    assert whole(copies).tolist() == [1, 1]


@pytest.mark.usefixtures("group")
def test_adapters_come_before_sharding() -> None:
    net = small_net()
    fully_shard(net)
    message = r"'0' is sharded already; inject the adapters first, then call fully_shard"
    with pytest.raises(MethodError, match=message):
        inject(net, create("lora"), generator=generator())


@pytest.mark.usefixtures("group")
def test_components_of_sharded_layers_stay() -> None:
    run = sharded_run()
    for layer in run.layers.values():
        local(layer.d.detach())[1] = 0.0
    spells = DeadSteps(run.layers)
    spells.step()
    gone = spells.at_least(1)
    assert gone.tolist() == [False, True, False] * 2
    with pytest.raises(MethodError, match=r"'0' is sharded: .* after training only; .*drop_zeros"):
        remove_components(run.layers, gone, run.optimizer.state)
    factors = {path: run.method.factors(layer) for path, layer in run.layers.items()}
    assert all(type(f.A) is type(f.B) is Tensor for f in factors.values())
    assert run.method.summary(run.layers).live == 4


@pytest.mark.parametrize("kind", ["layer norm", "rms norm"])
def test_the_weight_of_a_norm_may_be_freed(kind: str) -> None:
    """FSDP has done so when the norm ends the forward pass of a module of its own."""
    u, weight = torch.randn(3, 4, requires_grad=True), nn.Parameter(torch.ones(4))
    weight.requires_grad_(False)
    if kind == "layer norm":
        x = nn.functional.layer_norm(u, (4,), weight)
    else:
        x = weight * (u * torch.rsqrt(u.square().mean(-1, keepdim=True)))
    assert keep(x)[1][0] is not x
    weight.untyped_storage().resize_(0)
    assert keep(x)[1] == (x,)
