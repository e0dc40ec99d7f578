"""The head at the learned places alone: the model's own loss and gradients, from fewer logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from methods.inject import inject
from methods.registry import create
from sora_cli.core.errors import SoraError
from sora_cli.tasks import learned
from sora_cli.tasks.language import IGNORED, token_sums
from sora_cli.tasks.learned import (
    LEARNED,
    LearnedHead,
    learned_labels,
    learned_logits,
    learned_places,
)
from tests.helpers_models import tiny_gpt2, tiny_llama, token_ids
from tests.methods.support import generator

Make = Callable[[], Any]
SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


def _gemma2() -> Any:
    """Its logits are bent by a tangent."""
    config = transformers.Gemma2Config(**SMALL, final_logit_softcapping=3.0)
    return transformers.Gemma2ForCausalLM(config).eval()


def _mixtral(**options: Any) -> Any:
    config = transformers.MixtralConfig(**SMALL, num_local_experts=2, **options)
    return transformers.MixtralForCausalLM(config).eval()


def _cohere(scale: float) -> Any:
    config = transformers.CohereConfig(**SMALL, logit_scale=scale)
    return transformers.CohereForCausalLM(config).eval()


def _granite() -> Any:
    """At random weights its loss says little: all logits are small."""
    config = transformers.GraniteConfig(**SMALL, logits_scaling=1.01)
    return transformers.GraniteForCausalLM(config).eval()


def _with_bias() -> Any:
    model = tiny_gpt2()
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    return model


def _with_router_loss() -> Any:
    return _mixtral(output_router_logits=True, router_aux_loss_coef=1.0)


def _batch() -> dict[str, Any]:
    ids = token_ids(3, 9)
    labels = ids.clone()
    labels[0, :5] = labels[1, 3:6] = labels[2, 7:] = IGNORED
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "use_cache": False}


def _seen(model: Any) -> list[torch.Size]:
    """The shapes of what the head makes."""
    shapes: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _head, _inputs, out: shapes.append(out.shape)
    )
    return shapes


@pytest.mark.parametrize("make", [tiny_llama, lambda: tiny_llama(tied=True), tiny_gpt2, _gemma2])
def test_loss_and_gradients_are_the_models_own(make: Make) -> None:
    model, batch = make().double(), _batch()
    places = learned_places(batch["labels"])
    wanted = model(**batch).loss
    gradients = torch.autograd.grad(wanted, list(model.parameters()), allow_unused=True)
    assert LearnedHead.of(model).alone
    assert LearnedHead.of(model).alone  # once and no more
    shapes = _seen(model)
    found = model(**batch, **{LEARNED: places}).loss
    assert [tuple(shape[:2]) for shape in shapes] == [(1, len(places))]
    torch.testing.assert_close(found, wanted)
    again = torch.autograd.grad(found, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(again, gradients)
    torch.testing.assert_close(model(**batch).loss, wanted)  # without places all is as ever
    assert model(**batch).logits.shape[:2] == (3, 9)


def test_places_are_those_before_what_is_learned() -> None:
    labels = torch.tensor([[IGNORED, 5, IGNORED, 6], [7, IGNORED, IGNORED, 8]])
    places = learned_places(labels)
    assert places.tolist() == [0, 2, 4 + 2]  # nothing stands before the 7
    assert learned_labels(labels, places).tolist() == [5, 6, 8]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("alone", [True, False])
def test_scores_come_from_the_same_logits(make: Make, alone: bool) -> None:
    model, batch = make(), _batch()
    labels = batch.pop("labels")
    places = learned_places(labels)
    with torch.no_grad():
        whole = model(**batch).logits
        LearnedHead.of(model)
        given = {LEARNED: places} if alone else {}
        logits = learned_logits(model(**batch, **given).logits, labels, places)
    torch.testing.assert_close(logits, whole.flatten(0, 1)[places])
    sums = token_sums(logits, learned_labels(labels, places), places, labels.shape)
    assert sums[:, 1].tolist() == [4, 5, 6]
    loss = torch.nn.functional.cross_entropy(whole[0, 4:-1], labels[0, 5:], reduction="sum")
    assert float(sums[0, 0]) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize(("make", "alone"), [(_mixtral, True), (_with_router_loss, False)])
def test_a_model_with_a_loss_of_its_own_keeps_it(make: Make, alone: bool) -> None:
    model, batch = make(), _batch()
    wanted = model(**batch).loss
    assert LearnedHead.of(model).alone is alone
    found = model(**batch, **{LEARNED: learned_places(batch["labels"])}).loss
    torch.testing.assert_close(found, wanted)


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "CHUNK", 1)
    monkeypatch.setattr(learned, "_FEWEST", 4)


def _gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return torch.cat([gradient.flatten() for gradient in found]).double()


def _both(
    model: Any, *, bf16: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses and gradients of the logits at once, and in chunks."""
    assert LearnedHead.of(model).alone
    batch, found = _batch(), []
    batch[LEARNED] = learned_places(batch["labels"])
    for chunked in (False, True):
        if chunked:
            LearnedHead.of(model).chunk()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        found += [loss.detach(), _gradients(model, loss)]
    return found[0], found[2], found[1], found[3]


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("kind", ["exact", "autocast", "16 bits"])
@pytest.mark.parametrize("train", ["all", "all but the head", "an adapted head"])
@pytest.mark.parametrize("make", [tiny_llama, lambda: tiny_llama(tied=True), _with_bias])
def test_chunks_give_the_same_loss_and_gradients(make: Make, train: str, kind: str) -> None:
    model = make()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if kind == "16 bits":
        model = model.bfloat16()
    if train == "all but the head":
        model.get_output_embeddings().requires_grad_(False)
    elif train == "an adapted head" and not tied:  # a tied one cannot have an adapter
        assert LearnedHead.of(model).alone  # a run tries the model before it has adapters
        method = create("sora", targets=["lm_head", "*"])
        layers = inject(model, method, generator=generator())
        assert "lm_head" in layers
        for layer in layers.values():
            torch.nn.init.normal_(layer.B, std=0.1)
    whole, chunks, wanted, found = _both(model, bf16=kind == "autocast")
    exact = 1e-5 if kind == "exact" else 1e-3
    assert float(chunks) == pytest.approx(float(whole), rel=exact)
    assert float(wanted @ found / wanted.norm() / found.norm()) > 0.9999
    assert float(found.norm() / wanted.norm()) == pytest.approx(1, rel=100 * exact)


@pytest.mark.usefixtures("_small_chunks")
def test_chunks_are_what_the_head_makes() -> None:
    model, batch = tiny_llama(), _batch()
    places = learned_places(batch["labels"])
    LearnedHead.of(model).chunk()
    shapes = _seen(model)
    logits = model(**batch, **{LEARNED: places}).logits
    assert logits.shape[:2] == (1, 0)
    assert max(shape[-2] for shape in shapes) == 4 < len(places)
    del batch["labels"]  # an evaluation needs the logits themselves
    assert model(**batch, **{LEARNED: places}).logits.shape[:2] == (1, len(places))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_gemma2, "scales or caps the logits"),
        (_granite, "scales or caps the logits"),
        (lambda: _cohere(0.0625), "scales or caps the logits"),
        (_with_router_loss, "has further terms"),
    ],
)
def test_chunks_are_refused_where_they_would_be_wrong(make: Make, why: str) -> None:
    model, batch = make(), _batch()
    wanted = model(**batch).loss
    with pytest.raises(SoraError, match=why) as refused:
        LearnedHead.of(model).chunk()
    assert (refused.value.key, refused.value.hint) == (learned.KEY, "training.loss=logits")
    places = learned_places(batch["labels"])
    torch.testing.assert_close(model(**batch, **{LEARNED: places}).loss, wanted)


@pytest.mark.parametrize(
    ("make", "frozen", "chunked"),
    [
        (tiny_llama, True, True),
        (tiny_llama, False, False),
        (_gemma2, True, False),
        (_with_router_loss, True, False),
    ],
)
def test_chunks_by_themselves_where_they_cost_nothing(
    make: Make, frozen: bool, chunked: bool
) -> None:
    model, batch = make(), _batch()
    model.get_output_embeddings().requires_grad_(not frozen)
    wanted = model(**batch).loss
    LearnedHead.of(model).chunk_if_frozen()
    places = learned_places(batch["labels"])
    found = model(**batch, **{LEARNED: places})
    torch.testing.assert_close(found.loss, wanted)
    assert (found.logits.shape[1] == 0) is chunked


@pytest.mark.usefixtures("_small_chunks")
def test_a_scale_of_one_changes_nothing() -> None:
    whole, chunks, *_ = _both(_cohere(1.0))
    torch.testing.assert_close(chunks, whole)


def test_a_head_that_is_adapted_after_the_trial() -> None:
    model, batch = tiny_llama(), _batch()
    assert LearnedHead.of(model).alone
    layers = inject(model, create("lora", targets=["lm_head"]), generator=generator())
    torch.nn.init.normal_(layers["lm_head"].B)
    wanted = model(**batch).loss
    shapes = _seen(model)
    found = model(**batch, **{LEARNED: learned_places(batch["labels"])}).loss
    assert shapes[0][:2] == (1, 15)
    torch.testing.assert_close(found, wanted)
