"""Offloaded activations against those that stay: on a CPU, whose own tensors are copied away."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cosine_similarity

from methods.dropout import replace_dropouts
from methods.inject import inject
from methods.registry import create
from methods.torch_internals import storage_key
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.model import activation_offload
from sora_cli.model.activation_offload import offloaded, to_host
from sora_cli.model.gradient_checkpointing import checkpointed
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.tasks.learned import LEARNED, LearnedHead, learned_places
from sora_cli.train.switches import ActivationOffload
from tests.helpers_device import computing_on
from tests.helpers_errors import refused
from tests.helpers_models import model_inputs, tiny_bert, tiny_gpt2, tiny_llama, tiny_vit
from tests.helpers_runs import write_recipe
from tests.methods.support import generator, told

KEY = ActivationOffload.KEY
MODELS: list[Callable[[], Any]] = [tiny_bert, tiny_gpt2, tiny_llama, tiny_vit]


@pytest.fixture(autouse=True)
def small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_offload, "SMALLEST", 64)


def adapted(make: Callable[[], Any], name: str, dropout: float = 0.0) -> Any:
    """With siblings, dropouts in the model and its adapters, and updates that are not zero."""
    model: Any = make().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    replace_dropouts(model)
    layers = inject(model, create(name, dropout=dropout), exclude=[], generator=generator())
    for layer in layers.values():
        for _, p in layer.named_factors():
            nn.init.normal_(p, std=0.3, generator=generator(1))
    told(model, **model_inputs(model))
    return model


def stored(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def gradients(
    model: Any, hooks: contextlib.AbstractContextManager[None], **inputs: Any
) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    with hooks:
        out = model(**(inputs or model_inputs(model)))[0]
        loss = out.float().square().mean()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def kept_as_they_are() -> Any:
    """What adapted layers keep while somebody else stores tensors, without moving any."""
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


@pytest.mark.parametrize(
    ("make", "name", "dropout", "checkpointing"),
    [
        *((make, "lora", 0.3, False) for make in MODELS),
        (tiny_bert, "sora", 0.0, False),
        (tiny_llama, "sora", 0.3, True),
    ],
)
def test_gradients_have_the_same_bits(
    make: Callable[[], Any], name: str, dropout: float, checkpointing: bool
) -> None:
    model = adapted(make, name, dropout)
    moved: list[Tensor] = []

    def move(tensor: Tensor) -> Tensor:
        moved.append(to_host(tensor))
        return moved[-1]

    plain = gradients(model, contextlib.nullcontext())
    with checkpointed(model, on=checkpointing):
        expected = gradients(model, kept_as_they_are())
        found = gradients(model, offloaded(stored(model), device="cpu", move=move))
    assert len(moved) > (2 if checkpointing else 20)
    assert found.keys() == expected.keys() == plain.keys()
    assert all(torch.equal(found[n], expected[n]) for n in found)
    a, b = (torch.cat([g[n].flatten() for n in plain]) for g in (found, plain))
    assert cosine_similarity(a.double(), b.double(), dim=0) > 0.9999


@pytest.mark.parametrize("chunked", [False, True])
def test_of_a_decoders_loss(chunked: bool) -> None:
    model = adapted(tiny_llama, "lora")
    assert LearnedHead.of(model).alone
    if chunked:
        LearnedHead.of(model).chunk()
    ids = model_inputs(model)["input_ids"]
    inputs = {"input_ids": ids, "labels": ids, LEARNED: learned_places(ids), "use_cache": False}
    expected = gradients(model, kept_as_they_are(), **inputs)
    found = gradients(model, offloaded(stored(model), device="cpu"), **inputs)
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_what_is_moved() -> None:
    moved: list[Tensor] = []

    def move(tensor: Tensor) -> Tensor:
        moved.append(tensor)
        return to_host(tensor)

    weight = nn.Parameter(torch.randn(8, 8))
    scale = torch.randn(1, 8)
    x = torch.randn(8, 8, requires_grad=True)
    with offloaded([weight, scale], device="cpu", move=move):
        a = x * 2
        b = a @ weight.t()  # a, and a view of the weight
        c = b * a.view(8, 8)  # b, and a once more
        d = c * scale.expand(8, 8)  # nothing: the weight's own
        e = d * torch.ones(1, 8).expand(8, 8)  # repeats a smaller one
        f = e * torch.ones(8)  # too small
        f.exp().sum().backward()  # its own result, the last
    assert [storage_key(tensor) for tensor in moved] == [storage_key(t) for t in (a, b)]
    assert x.grad is not None
    with offloaded([], device="cuda", move=move):
        (x * x.exp()).sum().backward()
    assert len(moved) == 2


def test_strides_stay() -> None:
    x = torch.randn(6, 8).t().requires_grad_()
    with offloaded([], device="cpu"):
        y = x.exp()
        z = y.sin()
    assert y.grad_fn is not None
    assert z.grad_fn is not None
    assert z.grad_fn._saved_self.stride() == y.grad_fn._saved_result.stride() == (1, 8)


def test_a_memory_that_is_used_again() -> None:
    """A freed tensor's address is soon another's, and a changed tensor is another one."""
    weight = torch.ones(64, requires_grad=True)
    total: Any = 0.0
    with offloaded([weight], device="cpu"):
        for i in range(50):
            total = total + (weight * torch.full((64,), float(i))).sum()
        x = torch.zeros(64)
        for _ in range(3):
            total = total + (weight * x).sum()
            weight.exp()  # keeps its result
            x = x.detach()
            x += 1
    total.backward()
    assert weight.grad is not None
    assert weight.grad[0] == sum(range(50)) + sum(range(3))


def test_the_dry_run_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    monkeypatch.setattr(ActivationOffload, "check_machine", lambda *_: None)
    assert run(["train", str(recipe), "--dry-run", f"{KEY}=true"]) == 0
    assert "offloaded to the machine's memory" in capsys.readouterr().out


def test_where_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"activation_offload": True})
    computing_on("cpu", monkeypatch)
    refused(capsys, "train", recipe)
    refused(capsys, "train", recipe, "training.compile=true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SoraError, match="one process only"):
        ActivationOffload().check_machine(load_recipe(recipe).recipe)


@pytest.mark.parametrize(("kind", "pinned"), [("cpu", False), ("xpu", False), ("cuda", True)])
def test_pinned_memory_is_cudas(kind: str, pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    computing_on(kind, monkeypatch)
    copies: list[dict[str, Any]] = []

    def empty_like(tensor: Tensor, **options: Any) -> Tensor:
        copies.append(options)
        return tensor.clone()

    monkeypatch.setattr(torch, "empty_like", empty_like)
    to_host(torch.ones(2))
    assert copies == [{"device": "cpu", "pin_memory": pinned}]
    if kind != "cpu":
        ActivationOffload().check_machine(Recipe.model_construct())
