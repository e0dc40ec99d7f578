"""Checkpointed passes against passes that keep their activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

from methods.dropout import replace_dropouts
from methods.inject import inject
from methods.registry import create
from sora_cli.core.errors import SoraError
from sora_cli.model.gradient_checkpointing import checkpointed
from sora_cli.recipe.recipe import Recipe
from sora_cli.train.switches import GradientCheckpointing
from tests.helpers_methods import method_words
from tests.helpers_models import (
    model_inputs,
    tiny_bert,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_vit,
)
from tests.helpers_runs import train, write_recipe
from tests.methods.support import generator

MODELS: list[Callable[[], Any]] = [tiny_bert, tiny_distilbert, tiny_gpt2, tiny_llama, tiny_vit]


def _adapted(make: Callable[[], Any], name: str, dropout: float) -> nn.Module:
    """In float64, with dropouts in the model and its adapters, and updates that are not zero."""
    model: nn.Module = make().double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    replace_dropouts(model)
    method = create(name, dropout=dropout)
    layers = inject(model, method, generator=generator())
    for layer in layers.values():
        for _, p in layer.named_factors():
            nn.init.normal_(p, std=0.3, generator=generator(1))
    return model


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of two micro-batches, summed."""
    model.zero_grad()
    torch.manual_seed(5)
    for _ in range(2):
        inputs = {
            n: t.double() if t.is_floating_point() else t for n, t in model_inputs(model).items()
        }
        out: Any = model(**inputs)
        out[0].square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("make", "name", "dropout"),
    [
        *((make, "sora", 0.3) for make in MODELS),
        (tiny_bert, "lora", 0.0),
        (tiny_llama, "lora", 0.3),
    ],
)
def test_gradients_are_the_same(make: Callable[[], Any], name: str, dropout: float) -> None:
    model = _adapted(make, name, dropout)
    wanted = _gradients(model)
    again = _gradients(model)
    with checkpointed(model):
        found = _gradients(model)
    assert wanted.keys() == found.keys()
    for parameter, gradient in wanted.items():
        assert torch.equal(again[parameter], gradient)  # the seed decides on what is dropped
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-12)


def test_blocks_run_twice_only_while_it_is_on() -> None:
    model = _adapted(tiny_llama, "sora", 0.1)
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr,index]
    _gradients(model)
    assert len(calls) == 2  # micro-batches
    with checkpointed(model):
        _gradients(model)
    assert len(calls) == 6
    _gradients(model)
    assert len(calls) == 8
    assert not model.get_input_embeddings()._forward_hooks  # type: ignore[operator]


def test_a_model_that_can_not() -> None:
    model, recipe = tiny_t5(), Recipe.model_construct()
    GradientCheckpointing().check_model(recipe, model)
    model.supports_gradient_checkpointing = False
    with pytest.raises(SoraError, match="T5ForConditionalGeneration does not support") as error:
        GradientCheckpointing().check_model(recipe, model)
    assert error.value.key == "training.gradient_checkpointing"


@pytest.mark.parametrize("method", ["sora", "adalora"])
def test_a_run(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of the run without it, micro-batches, evaluations and adapter dropout included.

    In training its blocks run twice.
    """
    calls, forward = Counter[bool](), LlamaMLP.forward

    def counted(self: nn.Module, x: Tensor) -> Tensor:
        calls[self.training] += 1
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    training = {"epochs": 1, "gradient_accumulation": 2, "logging_steps": 1, "evaluate": 2}
    recipe = write_recipe(tmp_path, tiny_llama(num_labels=2), rows=32, training=training)
    words = [*method_words(method), "method.dropout=0.1"]
    plain, before = train(recipe, *words), calls.copy()
    calls.clear()
    words += ["training.gradient_checkpointing=true", f"output.dir={tmp_path / 'other'}"]
    found = train(recipe, *words)

    def losses(report: Any, key: str) -> list[float]:
        return [entry[key] for entry in report.history if key in entry]

    assert calls == {True: 2 * before[True], False: before[False]}
    assert len(losses(plain, "loss")) == 4
    assert losses(found, "loss") == pytest.approx(losses(plain, "loss"), rel=1e-5)
    assert losses(found, "eval_loss") == pytest.approx(losses(plain, "eval_loss"), rel=1e-4)
    assert found.metrics == plain.metrics
