"""New tokens: how a tokenizer and a model's embeddings get them, and which models cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from methods import inject, registry
from sora_cli.core.errors import SoraError
from sora_cli.model.new_tokens import add_rows, add_to_tokenizer, train_rows, trained_rows
from sora_cli.train.optimizers import moment_bytes
from tests.helpers_errors import refusal
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama, tiny_t5
from tests.helpers_runs import tiny_tokenizer


def test_a_token_is_never_split() -> None:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    new = add_to_tokenizer(tokenizer, ["<Tool>", "red dog"])
    assert new == {size: [], size + 1: [12, 5]}  # the first's piece is unknown
    ids = tokenizer("the red dog<Tool>cat", add_special_tokens=False)["input_ids"]
    assert ids == [16, size + 1, size, 4]
    assert add_to_tokenizer(tokenizer, []) == {}
    assert len(tokenizer) == size + 2


@pytest.mark.parametrize("free", [0, 1, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_begin_as_the_mean_of_their_pieces(free: int, tied: bool) -> None:
    model = tiny_llama(tied=tied)
    first = model.config.vocab_size - free
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    add_rows(model, {first: [3, 7], first + 1: []})
    assert torch.equal(torch.get_rng_state(), state)
    size = max(first + 2, len(before["lm_head.weight"]))
    assert model.config.vocab_size == size
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        old, new = before[name], model.get_parameter(name)
        assert new.shape == (size, old.shape[1])
        assert torch.equal(new[:first], old[:first])
        torch.testing.assert_close(new[first], old[[3, 7]].mean(0))
        torch.testing.assert_close(new[first + 1], old[:first].mean(0))


@pytest.mark.parametrize("name", registry.low_rank_names())
def test_rows_are_trained_beside_each_method(name: str) -> None:
    """The factors get the same gradients as without them, and the rows those of the weight."""
    model, plain = (tiny_llama(tied=True) for _ in range(2))
    for each in (model, plain):
        method = registry.create(name)
        inject.inject(each, method, generator=torch.Generator().manual_seed(0))
    train_rows(model, [40, 41])
    plain.lm_head.weight.requires_grad_(True)
    ids = torch.tensor([[5, 40, 7, 41, 9]])
    losses = [each(input_ids=ids, labels=ids).loss for each in (model, plain)]
    assert losses[0] == losses[1]
    for loss in losses:
        loss.backward()
    (rows,) = trained_rows(model).values()
    torch.testing.assert_close(rows.rows.grad, plain.lm_head.weight.grad[[40, 41]])
    wanted = {n: p.grad for n, p in plain.named_parameters() if n != "model.embed_tokens.weight"}
    for path, parameter in model.named_parameters():
        if parameter is not rows.rows and parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, wanted[path])
    assert model.lm_head.parametrizations["weight"].original.grad is None
    assert moment_bytes("adamw_8bit", model, "cpu") >= 2 * 4 * rows.rows.numel()


def biased() -> Any:
    config = transformers.GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=8)
    return transformers.GPTJForCausalLM(config)


@pytest.mark.parametrize(
    "make",
    [
        tiny_t5,
        biased,
    ],
)
def test_a_model_that_cannot_have_them(
    make: Any,
) -> None:
    with refusal():
        add_rows(make(), {40: [1]})


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows() -> None:
    with pytest.raises(SoraError, match=r"more tokens \(70\) than the model has rows for \(64\)"):
        add_rows(tiny_gpt2(), {70: [1]})


def test_an_encoder_has_rows_of_its_input_alone() -> None:
    model = tiny_bert().requires_grad_(False)
    add_rows(model, {64: [3]})
    train_rows(model, [64])
    assert list(trained_rows(model)) == ["bert.embeddings.word_embeddings"]
