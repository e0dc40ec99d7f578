"""Injection: the layers adapted, what stays frozen, and the removal of adapters."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from methods.base import LowRankLinear
from methods.errors import MethodError
from methods.inject import find_targets, inject, remove
from methods.registry import config_class, create, method_names
from tests.helpers_models import tiny_bert, tiny_gpt2, token_ids
from tests.methods.support import generator

LOW_RANK = [name for name in method_names() if config_class(name).low_rank]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.key = nn.Linear(4, 4)
        self.output = nn.ModuleDict({"dense": nn.Linear(4, 4)})


class Classifier(nn.Module):
    """Two blocks and a head; never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        self.headline = nn.Linear(4, 4)


def adapt(
    model: nn.Module,
    targets: str | list[str] = "all-linear",
    *,
    exclude: Iterable[str] = (),
    trainable: Iterable[str] = (),
    seed: int = 0,
) -> dict[str, LowRankLinear]:
    method = create("lora", r=2, targets=targets)
    return inject(model, method, exclude=exclude, trainable=trainable, generator=generator(seed))


IN_BLOCKS = [f"blocks.{n}.{part}" for n in (0, 1) for part in ("query", "key", "output.dense")]


def test_all_linear_leaves_out_what_is_excluded_and_below_it() -> None:
    layers = adapt(Classifier(), exclude=["head", "blocks.1"])
    assert list(layers) == [*IN_BLOCKS[:3], "headline"]  # its name only begins like the head's


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["key"], ["blocks.0.key", "blocks.1.key"]),
        (["query", "key"], ["blocks.0.query", "blocks.0.key", "blocks.1.query", "blocks.1.key"]),
        (["output.dense"], ["blocks.0.output.dense", "blocks.1.output.dense"]),
        (["blocks.1.key"], ["blocks.1.key"]),
        (["blocks.1.*"], IN_BLOCKS[3:]),
        (["blocks.?.key"], ["blocks.0.key", "blocks.1.key"]),
        (["blocks.[1]*y"], ["blocks.1.query", "blocks.1.key"]),
        (["key", "blocks.0.*"], [*IN_BLOCKS[:3], "blocks.1.key"]),
    ],
)
def test_names_and_patterns(targets: list[str], expected: list[str]) -> None:
    assert find_targets(Classifier(), targets) == expected


def test_unfit_layers_are_passed_over_and_refused_by_name() -> None:
    model = Classifier()
    unfit = {"blocks.0.key": "of no use", "headline": "of no use"}
    left = [path for path in IN_BLOCKS if path != "blocks.0.key"]
    assert find_targets(model, "all-linear", exclude=["head"], unfit=unfit) == left
    assert find_targets(model, ["blocks.*"], unfit=unfit) == left
    assert find_targets(model, ["blocks.1.key"], unfit=unfit) == ["blocks.1.key"]
    for targets in (["key"], ["blocks.0.key"], ["query", "*line"]):
        with pytest.raises(MethodError, match=r"cannot be adapted: '.*' is of no use; leave"):
            find_targets(model, targets, unfit=unfit)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["querry"], "target 'querry' matches no linear layer; did you mean 'query'"),
        (["dens"], "target 'dens' matches no linear layer; did you mean 'dense'"),
        (["key", "blocks.7.key"], r"target 'blocks.7.key' matches .* did you mean 'blocks.\d.key'"),
        (["norm"], "target 'norm' matches no linear layer"),
        (["head.0"], r"target 'head.0' matches no linear layer"),  # excluded
        (["zzz"], "there are: dense, headline, key, query"),
        ([], "no targets given"),
    ],
)
def test_targets_that_match_nothing(targets: list[str], message: str) -> None:
    model = Classifier()
    with pytest.raises(MethodError, match=message):
        adapt(model, targets, exclude=["head"])
    assert all(p.requires_grad for p in model.parameters())  # left as it was


@pytest.mark.parametrize("model", [nn.Sequential(nn.LayerNorm(4)), nn.Linear(4, 4)])
def test_nothing_to_adapt(model: nn.Module) -> None:
    """A bare linear layer has no parent to put its adapter in."""
    with pytest.raises(MethodError, match="no linear layer to adapt"):
        adapt(model)


def test_everything_else_is_frozen_but_what_is_to_be_trained() -> None:
    model = Classifier()
    layers = adapt(model, trainable=["head", "norm"])
    assert list(layers) == [*IN_BLOCKS, "headline"]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {f"{path}.{factor}" for path in layers for factor in "AB"}
    whole = {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}
    assert trainable == adapters | whole | {"norm.weight", "norm.bias"}


def test_adapting_twice_is_refused() -> None:
    model = Classifier()
    adapt(model, ["key"])
    with pytest.raises(MethodError, match=r"'blocks.0.key' has an adapter already"):
        adapt(model, ["query"])


def test_remove_restores_the_model() -> None:
    model = Classifier()
    before = dict(model.named_modules())
    layers = adapt(model)
    assert dict(model.named_modules()) != before
    remove(model, layers)
    assert dict(model.named_modules()) == before
    adapt(model)  # and it can be adapted anew


def test_a_layer_at_two_paths_is_refused() -> None:
    model = Classifier()
    model.blocks[1].key = model.blocks[0].key
    with pytest.raises(MethodError, match=r"blocks.0.key and blocks.1.key are one shared layer"):
        adapt(model)
    assert list(adapt(model, ["query"])) == ["blocks.0.query", "blocks.1.query"]


def test_adapters_take_over_the_mode_of_their_layers() -> None:
    model = Classifier().eval()
    assert not any(layer.training for layer in adapt(model).values())
    assert not model.blocks[0].key.dropout.training


def test_same_seed_same_factors_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    first = adapt(Classifier(), seed=5)
    torch.manual_seed(2)
    second = adapt(Classifier(), seed=5)
    for path, layer in first.items():
        assert torch.equal(layer.A, second[path].A)
    assert not torch.equal(first[IN_BLOCKS[0]].A, first[IN_BLOCKS[1]].A)


@pytest.mark.parametrize("name", LOW_RANK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("build", [tiny_bert, tiny_gpt2])
def test_a_transformer_is_unchanged_at_first(
    name: str, dtype: torch.dtype, build: type[nn.Module]
) -> None:
    model = build().to(dtype)
    before = model(token_ids()).logits
    weights = {path: w.clone() for path, w in model.state_dict().items()}
    layers = inject(model, create(name), exclude=["classifier"], generator=generator())
    # GPT-2's transposed weights: another order of sums in float64 on some processors
    exact = 0 if dtype != torch.float64 else 1e-14
    torch.testing.assert_close(model(token_ids()).logits, before, rtol=exact, atol=exact)

    remove(model, layers)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(w, weights[path]) for path, w in model.state_dict().items())


def test_conv1d_is_adapted_by_its_own_shape_and_the_output_embedding_is_not() -> None:
    model = tiny_gpt2()
    layers = adapt(model)
    assert {path.split(".", 3)[-1] for path in layers} == {
        "attn.c_attn",
        "attn.c_proj",
        "mlp.c_fc",
        "mlp.c_proj",
    }
    layer = layers["transformer.h.0.mlp.c_fc"]
    n_in, n_out = layer.base.weight.shape
    assert (layer.A.shape, layer.B.shape) == ((2, n_in), (n_out, 2))

    layer.B.data.normal_(generator=generator())
    x = torch.randn(3, n_in, generator=generator(1))
    effect = layer(x) - layer.base(x)
    expected = (x.double() @ layer.factors().dense().T).float()
    torch.testing.assert_close(effect, expected, rtol=0, atol=1e-4)


class Tied(nn.Module):
    """An output layer with the embedding's weight; only the weight shows it."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.inner = nn.Linear(4, 4)
        self.output = nn.Linear(4, 9, bias=False)
        if tied:
            self.output.weight = self.embedding.weight


def test_a_layer_tied_to_an_embedding_is_no_target() -> None:
    assert list(adapt(Tied(tied=True))) == ["inner"]
    assert list(adapt(Tied(tied=True), ["*n*"])) == ["inner"]
    assert list(adapt(Tied(tied=False))) == ["inner", "output"]
    with pytest.raises(MethodError, match="'output' shares its weight with 'embedding'"):
        adapt(Tied(tied=True), ["inner", "output"])


def test_an_output_embedding_is_a_target_by_name_only() -> None:
    untied = tiny_gpt2(tie_word_embeddings=False)
    assert find_targets(untied, ["lm_head", "c_fc"])[-1] == "lm_head"
    assert "lm_head" not in find_targets(untied, ["*"])
    assert "lm_head" not in find_targets(untied, "all-linear")


def test_two_layers_with_one_weight_are_refused() -> None:
    model = Classifier()
    query = model.get_submodule("blocks.0.query")
    assert isinstance(query, nn.Linear)
    model.headline.weight = query.weight
    with pytest.raises(MethodError, match=r"'blocks.0.query' shares its weight with 'headline'"):
        adapt(model)
