"""The rehearsal device itself: what it refuses, counts and casts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.factors import rank_for_energy
from sora_cli.core import device
from tests.helpers_device import computing_on
from tests.rehearsal import fake
from tests.rehearsal.watch import Watch, on_accelerator, on_cpu

DEVICE = "rehearsal:0"
pytestmark = [
    pytest.mark.usefixtures("watch"),
    pytest.mark.skipif(fake.REAL, reason="there is a real accelerator"),
]


def test_it_is_there_for_the_test_alone() -> None:
    assert device.device_type() == "rehearsal"
    assert not device.is_cuda()
    assert device.process_state().device == torch.device(DEVICE)
    fake.STATE.on = False
    assert device.device_type() == "cpu"


@pytest.mark.parametrize(
    "mixes",
    [
        lambda x, cpu: x + cpu,
        lambda x, cpu: cpu @ x,
        lambda x, cpu: x.add_(cpu),
        lambda x, cpu: torch.cat([x, cpu]),
        lambda x, cpu: nn.functional.linear(x, cpu),
        lambda x, cpu: torch.where(cpu > 0, x, x),
    ],
)
def test_a_tensor_of_the_cpu_is_refused(mixes: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, cpu = torch.ones(2, 2, device=DEVICE), torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        mixes(x, cpu)
    mixes(x, cpu.to(DEVICE))


def test_a_number_and_an_index_of_the_cpu_are_not() -> None:
    x = torch.arange(4.0, device=DEVICE)
    assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
    assert x[torch.tensor([3, 0])].tolist() == [3, 0]
    assert (x + torch.tensor([1.0], device=DEVICE)).tolist() == [1, 2, 3, 4]
    with pytest.raises(TypeError, match="can't convert rehearsal:0"):
        x.numpy()


READS: list[Callable[[Tensor], Any]] = [
    lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: float(x[0]), lambda x: x.tolist(),
    lambda x: x.cpu(), lambda x: x[x > 1], lambda x: x.nonzero(), lambda x: torch.equal(x, x),
    lambda x: torch.empty(4).copy_(x), lambda x: x.copy_(torch.ones(4)),
    lambda x: x + torch.tensor(1.0, device=DEVICE), lambda x: x[torch.tensor([3, 0])],
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(READS)))
def test_what_waits_in_a_step_is_an_error(number: int, watch: Watch) -> None:
    x = torch.arange(4.0, device=DEVICE)
    READS[number](x)
    assert watch.waits == []
    watch.in_step = True
    with pytest.raises(RuntimeError, match="a step waits for the device"):
        READS[number](x)
    watch.strict = False
    READS[number](x)
    assert len(watch.waits) == 2
    (x * 2 + x.sum()).exp_().softmax(0)
    x[1:3] = torch.zeros(2, device=DEVICE)
    x.copy_(torch.ones(4), non_blocking=True)
    assert len(watch.waits) == 2


def test_a_wait_names_our_line_or_its_reason(watch: Watch) -> None:

    watch.in_step, watch.strict = True, False
    rank_for_energy(torch.ones(3, device=DEVICE), 0.5)
    assert all(line.startswith("methods/factors.py:") for line in watch.waits)
    assert watch.waits


def test_gradients_and_steps() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
    plain[2].weight = plain[2].weight
    model = copy.deepcopy(plain)
    before = list(model.parameters())
    model.to(DEVICE)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    for net, place in ((plain, "cpu"), (model, DEVICE)):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
        for step in range(3):
            net(torch.arange(6.0).view(2, 3).to(place) + step).square().mean().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert b.device == torch.device(DEVICE)
        torch.testing.assert_close(a, b.cpu())
    assert type(copy.deepcopy(model)[0].weight) is fake.Rehearsed


def test_views_share_their_storage() -> None:
    x = torch.zeros(2, 3, device=DEVICE)
    view = x.t()[1]
    assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
    version = x._version
    assert view.add_(1) is view
    assert x.tolist() == [[0, 1, 0], [0, 1, 0]]
    assert x._version > version


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 3).to(DEVICE)
    x = torch.rand(2, 3, device=DEVICE)
    with torch.autocast("rehearsal", dtype=dtype):
        y = layer(x)
        assert (y.dtype, (x @ x.t()).dtype) == (dtype, dtype)
        assert (y.softmax(-1).dtype, y.exp().dtype, (y + y).dtype) == (
            torch.float32, torch.float32, dtype,
        )  # fmt: skip
        assert nn.functional.cross_entropy(y, y.softmax(-1)).dtype == torch.float32
        with torch.autocast("rehearsal", enabled=False):
            assert layer(x).dtype == torch.float32
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    exact = nn.functional.linear(x.cpu().to(dtype), layer.weight.cpu().to(dtype),
                                 layer.bias.cpu().to(dtype))  # fmt: skip
    assert torch.equal(y.cpu(), exact)


def test_its_own_random_numbers_and_memory() -> None:
    torch.manual_seed(0)
    cpu, module = torch.get_rng_state(), device.device_module()
    state = module.get_rng_state()
    drawn = torch.rand(1000, device=DEVICE)
    dropped = nn.functional.dropout(drawn, 0.5)
    assert torch.equal(torch.get_rng_state(), cpu)
    module.set_rng_state(state)
    assert torch.equal(torch.rand(1000, device=DEVICE), drawn)
    assert torch.equal(nn.functional.dropout(drawn, 0.5), dropped)
    before = module.memory_allocated()
    more = torch.zeros(1000, device=DEVICE)
    assert module.memory_allocated() - before == more.nbytes
    del more
    assert module.memory_allocated() == before
    assert module.max_memory_allocated() >= before + 4000


def test_a_parameter_takes_other_data() -> None:
    """As where components are removed; and what torch makes by resizing."""
    weight = nn.Parameter(torch.ones(4, 2, device=DEVICE))
    weight.data = weight.data[:3] * 2
    weight.square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[4, 4]] * 3
    assert weight.tolist() == [[2, 2]] * 3
    assert torch.arange(3, device=DEVICE).shape == (3,)
    assert torch.tensor([1, 2], device=DEVICE).sum().item() == 3


def test_a_real_accelerators_waits_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_accelerator(monkeypatch) as watch:
        for in_step in (False, True, True):
            watch.in_step = in_step
            warnings.warn("called a synchronizing CUDA operation (somewhere)", stacklevel=1)
    assert len(watch.waits) == 2


def test_on_the_cpu_beside_a_real_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    computing_on("cuda", monkeypatch)
    monkeypatch.setattr(fake, "REAL", True)
    with on_cpu():
        assert device.process_state().device == torch.device("cpu")
    assert device.device_type() == "cuda"
