"""Layers that read the same input are computed together, and give what each gives alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods import siblings
from methods.inject import adapted_layers, inject
from methods.layer import LowRankLinear
from methods.registry import create
from methods.siblings import same_inputs
from tests.helpers_models import tiny_bert, tiny_llama
from tests.methods.support import generator, told
from tests.methods.test_fused_models import MODELS, adapted, inputs


class Pair(nn.Module):
    """Two layers of one input; one may be skipped, and the input changed before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 4, bias=False)
        self.skip = self.change = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.change:
            x.detach().mul_(2)
        return y if self.skip else torch.cat([y, self.second(x)], dim=-1)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers were computed together, by call."""
    calls: list[int] = []
    real = siblings.adapted_linear

    def counting(x: Tensor, branches: Any) -> Any:
        calls.append(len(branches))
        return real(x, branches)

    monkeypatch.setattr(siblings, "adapted_linear", counting)
    return calls


def filled(model: nn.Module, *, dropout: float = 0.0) -> nn.Module:
    """The model with an update in every layer that is not zero."""
    method = create("sora", dropout=dropout)
    for layer in inject(model, method, generator=generator()).values():
        for _, p in layer.named_factors():
            nn.init.normal_(p, std=0.3, generator=generator(1))
    return model.double().train()


def pair(*, dropout: float = 0.0) -> tuple[nn.Module, Any]:
    """The pair, not yet told, and a batch."""
    model: Any = filled(Pair(), dropout=dropout)
    return model, torch.randn(7, 2, 6, generator=generator(2), dtype=torch.float64)


def alone(model: nn.Module) -> Any:
    """A copy of the model whose layers know no siblings."""
    copied: Any = copy.deepcopy(model)
    for layer in adapted_layers(copied).values():
        layer.siblings = None
    return copied


def gradients(model: nn.Module, *args: Any, **batch: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)  # dropout's masks
    out: Any = model(*args, **batch)
    out = out if isinstance(out, Tensor) else out[0]
    out.square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_of_each_architecture(make: Callable[[], Any]) -> None:
    model = adapted(make, "sora")
    batch = inputs(model)
    told(model, **batch)
    expected = gradients(alone(model), **batch)
    torch.testing.assert_close(gradients(model, **batch), expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (tiny_bert, ["query key value"]),
        (tiny_llama, ["q_proj k_proj v_proj", "gate_proj up_proj"]),
    ],
)
def test_which_they_are(make: Callable[[], Any], names: list[str], counted: list[int]) -> None:
    model: Any = adapted(make, "sora")
    groups = told(model, **inputs(model))
    found = {" ".join(path.rpartition(".")[2] for path in group) for group in groups}
    assert found == set(names)
    gradients(model, **inputs(model))
    assert sorted(counted) == sorted(len(group) for group in groups)


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama], ids=lambda make: make.__name__)
def test_gradient_checkpointing(make: Callable[[], Any]) -> None:
    model: Any = adapted(make, "sora")
    told(model, **inputs(model))
    expected = gradients(copy.deepcopy(model), **inputs(model))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model, **inputs(model)), expected)


def test_masks_of_dropout_are_those_of_the_layers_alone(counted: list[int]) -> None:
    model, x = pair(dropout=0.4)
    assert told(model, x) == [["first", "second"]]
    expected, found = gradients(alone(model), x), gradients(model, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert counted == [2]


def test_a_skipped_layer_has_no_gradient(counted: list[int]) -> None:
    model, x = pair()
    told(model, x)
    model.skip = True
    found = gradients(model, x)
    assert counted == [2]
    assert set(found) == {"first.A", "first.B", "first.d"}
    model.skip = False
    model.zero_grad()
    torch.testing.assert_close(gradients(model, x), gradients(alone(model), x))


def test_a_changed_input_is_read_again() -> None:
    model, x = pair()
    told(model, x)
    model.change = True
    assert torch.equal(model(x.clone()), alone(model)(x.clone()))


def test_another_input_is_read(counted: list[int]) -> None:
    model, x = pair()
    told(model, x)
    first, second = adapted_layers(model).values()
    first(x)
    other = x.clone().mul_(3)
    assert torch.equal(second(other), alone(model).second(other))
    assert counted == [2]


def test_who_computes_alone(counted: list[int]) -> None:
    model, x = pair()
    told(model, x)
    with torch.no_grad():
        model(x)
    hook = model.second.register_forward_hook(lambda *_: None)
    model(x)
    hook.remove()
    model.second.base.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    model(x)
    assert not counted
    model.second.base.bias = None
    model(x)
    assert counted == [2]


def test_nothing_is_found_where_inputs_or_parents_differ() -> None:
    model = filled(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))))
    x = torch.randn(3, 4, dtype=torch.float64)
    assert told(model, x) == []
    with same_inputs(model, ["0", "2.0"]) as groups:
        model[0](x), model[2](x)
    assert groups == []


def test_a_copy_computes_its_own() -> None:
    model, x = pair()
    told(model, x)
    adapted_layers(model)["first"](x)  # what is ready belongs to this model
    copied = copy.deepcopy(model)
    assert copied.first.siblings is copied.second.siblings
    assert copied.first.siblings.layers == (copied.first, copied.second)
    assert isinstance(copied.first, LowRankLinear)
    torch.testing.assert_close(copied(x), model(x))
