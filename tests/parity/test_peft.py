"""Our LoRA and AdaLoRA train exactly as PEFT's do, from the same factors on the same data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from methods.base import AdapterMethod, LowRankLinear, StepInfo
from methods.inject import inject
from methods.registry import create

TOLERANCE = 1e-9
STEPS = 50
LR = 5e-3
WEIGHT_DECAY = 0.01
LINEARS = ["first", "second"]


class Net(nn.Module):
    """Two linear layers, tanh between; an output with a loss, which PEFT's penalty is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 14, dtype=torch.float64)
        self.second = nn.Linear(14, 6, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        prediction = self.second(torch.tanh(self.first(x)))
        return SimpleNamespace(loss=nn.functional.mse_loss(prediction, y))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(32, 10, generator=g, dtype=torch.float64)
    return x, torch.randn(32, 6, generator=g, dtype=torch.float64)


@pytest.mark.versions
@pytest.mark.parametrize("use_rslora", [False, True])
def test_lora(
    net: Net,
    data: tuple[Tensor, Tensor],
    use_rslora: bool,
    record_property: Callable[[str, object], None],
) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=use_rslora, target_modules=LINEARS)
    theirs = peft_model(net, config)
    method = create("lora", r=4, alpha=6, use_rslora=use_rslora)
    layers = adapted_like(theirs, net, method)

    assert train_ours(net, method, layers, data) == close(train_peft(theirs, data))
    case = "PEFT rsLoRA" if use_rslora else "PEFT LoRA"
    record_property("parity", (case, STEPS, assert_same_factors(theirs, layers)))


@pytest.mark.versions
@pytest.mark.parametrize("delta_t", [1, 4])
def test_adalora(
    net: Net,
    data: tuple[Tensor, Tensor],
    delta_t: int,
    record_property: Callable[[str, object], None],
) -> None:
    """PEFT's allocator, called after every optimiser step with its 0-based number, as here.

    PEFT masks to the final budget for the first time at step T - t_final; the authors and we do so
    after it, unless delta_t divides that number. Here it does (50 - 10 = 40). In a float64 net PEFT
    leaves `ranknum`, the rank in its scaling, trainable; the scaling is meant to be constant, so
    the optimiser is given the factors alone.
    """
    config = peft.AdaLoraConfig(
        init_r=6,
        target_r=2,
        lora_alpha=8,
        tinit=5,
        tfinal=10,
        deltaT=delta_t,
        beta1=0.85,
        beta2=0.9,
        orth_reg_weight=0.3,
        total_step=STEPS,
        target_modules=LINEARS,
    )
    theirs = peft_model(net, config)
    method = create(
        "adalora",
        init_r=6,
        target_r=2,
        alpha=8,
        t_init=5,
        t_final=10,
        delta_t=delta_t,
        beta1=0.85,
        beta2=0.9,
        orth_weight=0.3,
    )
    layers = adapted_like(theirs, net, method)

    peft_losses = train_peft(theirs, data, allocate=theirs.base_model.update_and_allocate)
    assert train_ours(net, method, layers, data) == close(peft_losses)
    case = f"PEFT AdaLoRA, delta_t {delta_t}"
    record_property("parity", (case, STEPS, assert_same_factors(theirs, layers)))
    assert method.summary(layers).live == 4


def peft_model(net: Net, config: peft.PeftConfig) -> Any:
    """A copy of the net with PEFT's adapters, none of whose factors is zero, float64 as the net."""
    model = peft.get_peft_model(copy.deepcopy(net), config)
    g = torch.Generator().manual_seed(2)
    for path in LINEARS:
        for factor in peft_factors(model, path).values():
            factor.data.normal_(std=0.3, generator=g)
    return model


def peft_factors(model: Any, path: str) -> dict[str, Tensor]:
    """PEFT's parameters by our names; its gates are a column (r, 1)."""
    layer = model.base_model.model.get_submodule(path)
    if isinstance(layer, peft.tuners.adalora.SVDLinear):
        named = {"A": layer.lora_A, "B": layer.lora_B, "d": layer.lora_E}
        return {name: of["default"] for name, of in named.items()}
    return {"A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}


def adapted_like(model: Any, net: Net, method: AdapterMethod) -> dict[str, LowRankLinear]:
    """Our adapters in `net`, at the factors that PEFT's model has."""
    layers = inject(net, method, generator=torch.Generator().manual_seed(3))
    for path, layer in layers.items():
        own = dict(layer.named_parameters(recurse=False))
        for name, factor in peft_factors(model, path).items():
            own[name].data.copy_(factor.detach().view_as(own[name]))
    return layers


def train_peft(model: Any, data: tuple[Tensor, Tensor], *, allocate: Any = None) -> list[float]:
    """Losses (with PEFT's own penalty) before each step."""
    trained = [p for path in LINEARS for p in peft_factors(model, path).values()]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=WEIGHT_DECAY)
    losses = []
    for step in range(STEPS):
        loss = model.base_model(*data).loss  # PeftModel itself would leave the penalty out
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        if allocate is not None:
            allocate(step)
        optimizer.zero_grad()
    return losses


def train_ours(
    net: Net,
    method: AdapterMethod,
    layers: dict[str, LowRankLinear],
    data: tuple[Tensor, Tensor],
) -> list[float]:
    groups = method.param_groups(layers, lr=LR, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups)
    method.begin(layers, total_steps=STEPS)
    losses = []
    for step in range(STEPS):
        loss = net(*data).loss
        penalty = method.penalty(layers)
        if penalty is not None:
            loss = loss + penalty
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        method.after_step(layers, StepInfo(step, STEPS, {"factors": LR}))
        optimizer.zero_grad()
    return losses


def close(expected: list[float]) -> Any:
    return pytest.approx(expected, rel=0, abs=TOLERANCE)


def assert_same_factors(model: Any, layers: dict[str, LowRankLinear]) -> float:
    """Every factor to 1e-9, and the same entries at zero; the largest deviation."""
    largest = 0.0
    for path, layer in layers.items():
        own = dict(layer.named_parameters(recurse=False))
        for name, theirs in peft_factors(model, path).items():
            ours = own[name].view_as(theirs)
            deviation = (ours - theirs).abs().max().item()
            assert deviation <= TOLERANCE, (path, name)
            assert torch.equal(ours.ne(0), theirs.ne(0)), (path, name)
            largest = max(largest, deviation)
    return largest
