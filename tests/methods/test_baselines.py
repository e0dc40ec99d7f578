"""Methods that train the model's own parameters: which ones, and that it is plain AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.baselines import Baseline, choose
from methods.configs import MethodOptions
from methods.contract.net import LR, regression_data, small_net
from methods.errors import MethodError
from methods.registry import create
from tests.helpers_models import tiny_bert, tiny_deberta, tiny_llama

HEAD = ["classifier"]


def chosen(name: str, model: nn.Module, **options: bool) -> Baseline:
    method = create(name)
    assert isinstance(method, Baseline)
    choose(model, method, head=HEAD, **options)
    return method


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_nothing_but_the_head() -> None:
    model = tiny_bert()
    assert chosen("head", model).parameters == {}
    assert trained(model) == {"classifier.weight", "classifier.bias"}


def test_all_biases_and_the_head() -> None:
    for model in (tiny_bert(), tiny_deberta()):
        method = chosen("bitfit", model)
        biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
        assert trained(model) == biases | {"classifier.weight"}
        assert set(method.parameters) == biases - {"classifier.bias"}


def test_biases_of_attention_and_recurrent_layers() -> None:
    net = nn.ModuleDict(
        {"a": nn.MultiheadAttention(4, 2), "r": nn.LSTM(4, 4), "e": nn.Embedding(2, 4)}
    )
    choose(net, method := create("bitfit"))  # type: ignore[arg-type]
    assert isinstance(method, Baseline)
    wanted = {"a.in_proj_bias", "a.out_proj.bias", "r.bias_ih_l0", "r.bias_hh_l0"}
    assert set(method.parameters) == wanted


def test_everything() -> None:
    model = tiny_bert()
    method = chosen("full", model)
    names = {name for name, _ in model.named_parameters()}
    assert trained(model) == names
    assert set(method.parameters) == names - {"classifier.weight", "classifier.bias"}
    assert "bert.embeddings.word_embeddings.weight" in method.parameters


def test_a_frozen_head_stays_frozen() -> None:
    model = tiny_bert()
    chosen("full", model, train_head=False)
    assert not trained(model) & {"classifier.weight", "classifier.bias"}
    with pytest.raises(MethodError, match="head has nothing to train"):
        chosen("head", model, train_head=False)


def test_a_model_without_biases_is_refused_before_anything_is_changed() -> None:
    model = tiny_llama()
    before = trained(model)
    with pytest.raises(MethodError, match="trains bias terms, and the model has none"):
        choose(model, create("bitfit"))  # type: ignore[arg-type]
    assert trained(model) == before


def test_vectors_do_not_decay() -> None:
    method = chosen("full", tiny_bert())
    base, rest = method.param_groups({}, lr=LR, weight_decay=0.1)
    assert (base["name"], base["weight_decay"], rest["weight_decay"]) == ("base", 0.1, 0.0)
    assert all(p.ndim > 1 for p in base["params"])
    assert all(p.ndim == 1 for p in rest["params"])
    (only,) = chosen("bitfit", tiny_bert()).param_groups({}, lr=LR, weight_decay=0.1)
    assert only["weight_decay"] == 0.0


def test_full_is_plain_adamw() -> None:
    """Its groups follow, to the bit, a loop that knows nothing of methods."""
    ours, plain = small_net(), small_net()
    choose(ours, method := create("full"))  # type: ignore[arg-type]
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.ndim < 2]
    groups = [{"params": decayed}, {"params": vectors, "weight_decay": 0.0}]
    one = torch.optim.AdamW(method.param_groups({}, lr=LR, weight_decay=0.1))
    other = torch.optim.AdamW(groups, lr=LR, weight_decay=0.1)
    x, y = regression_data()
    for _ in range(5):
        for net, optimizer in ((ours, one), (plain, other)):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_there_is_nothing_to_set() -> None:
    assert not MethodOptions.model_fields
    with pytest.raises(ValueError, match="alpha"):
        create("head", alpha=1.0)
