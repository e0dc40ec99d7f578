"""The fused layer inside real architectures against the same layers under plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.inject import inject
from methods.layer import LowRankLinear
from methods.registry import create
from tests.helpers_models import (
    model_inputs,
    tiny_bert,
    tiny_deberta,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_vit,
)
from tests.methods.support import generator

MODELS: list[Callable[[], Any]] = [
    tiny_bert,
    tiny_deberta,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_vit,
]


def adapted(make: Callable[[], Any], name: str) -> nn.Module:
    """A model in float64 with an update in every layer that is not zero, and without dropout."""
    model: nn.Module = make().double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    layers = inject(model, create(name), generator=generator())
    for layer in layers.values():
        for _, p in layer.named_factors():
            nn.init.normal_(p, std=0.3, generator=generator(1))
    return model


def inputs(model: nn.Module) -> dict[str, Tensor]:
    """The architecture's own inputs in float64; of rows of tokens half are half padding."""
    made = model_inputs(model)
    made = {n: t.double() if t.is_floating_point() else t for n, t in made.items()}
    tokens = made.get("input_ids")
    if tokens is not None:
        mask = torch.ones_like(tokens)
        mask[::2, tokens.shape[1] // 2 :] = 0
        made["attention_mask"] = mask
    return made


def plainly(model: nn.Module) -> nn.Module:
    """A copy whose layers leave everything to autograd: a hook on their base makes them do so."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, LowRankLinear):
            module.base.register_forward_hook(lambda _module, _args, output: output)
            assert not module.base_is_plain()
    return copied


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    out: Any = model(**batch)
    out[0].square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["lora", "adalora", "sora"])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_padded_batches(make: Callable[[], Any], name: str) -> None:
    model = adapted(make, name)
    batch = inputs(model)
    expected = gradients(plainly(model), batch)
    assert expected
    torch.testing.assert_close(gradients(model, batch), expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama], ids=lambda make: make.__name__)
def test_gradient_checkpointing_of_a_model(make: Callable[[], Any]) -> None:
    model: Any = adapted(make, "sora")
    batch = inputs(model)
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model, batch), expected, rtol=1e-8, atol=1e-11)
