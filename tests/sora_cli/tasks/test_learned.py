"""The head at the learned places alone: the model's own loss and gradients, from fewer logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from sora_cli.tasks.language import IGNORED, token_sums
from sora_cli.tasks.learned import (
    LEARNED,
    learned_labels,
    learned_logits,
    learned_places,
    score_learned_only,
)
from tests.helpers_models import tiny_gpt2, tiny_llama, token_ids

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
    assert score_learned_only(model)
    assert score_learned_only(model)  # once and no more
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
        score_learned_only(model)
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
    assert score_learned_only(model) is alone
    found = model(**batch, **{LEARNED: learned_places(batch["labels"])}).loss
    torch.testing.assert_close(found, wanted)
