"""Adapted layers and near misses, grouped."""

from __future__ import annotations

import torch
from torch import nn

from methods.inject import inject
from methods.registry import create
from sora_cli.run.layers import (
    LayerGroup,
    adapted_groups,
    layers_without_adapter,
    left_out_lines,
    other_weights,
    other_weights_lines,
)
from tests.architectures import CAUSAL, CLASSES, tiny
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama

GENERATOR = torch.Generator()


def test_layers_that_differ_in_a_number_are_one_group() -> None:
    method = create("lora", r=3)
    layers = inject(tiny_bert(), method, exclude=["classifier"], generator=GENERATOR)
    groups = adapted_groups(layers)
    assert sum(g.count for g in groups) == len(layers)
    query = "bert.encoder.layer.{0-1}.attention.self.query"
    assert LayerGroup(query, "32 -> 32", 2, "rank 3") in groups


def test_gaps_and_single_layers() -> None:
    model = nn.ModuleDict({"net": nn.ModuleList([nn.Linear(4, 4) for _ in range(6)])})
    targets = ["net.0", "net.1", "net.2", "net.4"]
    layers = inject(model, create("lora", r=1, targets=targets), generator=GENERATOR)
    assert [g.pattern for g in adapted_groups(layers)] == ["net.{0-2,4}"]
    missed = layers_without_adapter(model, head=(), train_head=True)
    assert [(g.pattern, g.remark) for g in missed] == [("net.{3,5}", "not named by method.targets")]


def test_heads_and_output_embeddings_say_why_they_are_left_out() -> None:
    bert = tiny_bert()
    head = ["bert.pooler", "classifier"]
    inject(bert, create("lora", targets=["query"]), exclude=head, generator=GENERATOR)
    missed = {g.pattern: g.remark for g in layers_without_adapter(bert, head=head, train_head=True)}
    assert missed["classifier"] == missed["bert.pooler.dense"] == "head, trained in full"
    key = missed["bert.encoder.layer.{0-1}.attention.self.key"]
    assert key == "not named by method.targets"
    frozen = layers_without_adapter(bert, head=head, train_head=False)
    assert "head, frozen (training.train_head)" in {g.remark for g in frozen}

    llama = tiny_llama()
    inject(llama, create("lora"), generator=GENERATOR)
    assert [
        (g.pattern, g.remark) for g in layers_without_adapter(llama, head=(), train_head=True)
    ] == [("lm_head", "output embedding")]


def test_conv1d_shapes_are_in_to_out() -> None:
    layers = inject(tiny_gpt2(), create("lora", targets=["c_attn"]), generator=GENERATOR)
    (group,) = adapted_groups(layers)
    assert (group.pattern, group.shape) == ("transformer.h.{0-1}.attn.c_attn", "32 -> 96")


def test_layers_that_the_targets_do_not_reach() -> None:
    bert = tiny_bert()
    left_out = {f"bert.encoder.layer.{i}.attention.self.key": "of no use" for i in range(2)}
    inject(bert, create("lora"), exclude=["classifier"], unfit=left_out, generator=GENERATOR)
    missed = {
        g.remark: g
        for g in layers_without_adapter(bert, head=(), train_head=True, left_out=left_out)
    }
    key = "bert.encoder.layer.{0-1}.attention.self.key"
    assert missed["of no use"] == LayerGroup(key, "32 -> 32", 2, "of no use")
    assert left_out_lines(left_out, bert) == [f"no adapter on {key} (2): of no use"]
    left_out |= {path.replace("key", "value"): "of no use" for path in left_out}
    left_out |= {"classifier": "a head"}
    both = f"no adapter on {key}, {key.replace('key', 'value')} (4): of no use"
    assert left_out_lines(left_out, bert) == [both, "no adapter on classifier (1): a head"]


def test_weights_that_are_no_linear_layers() -> None:
    experts = {
        (g.pattern, g.shape, g.count): g.remark for g in other_weights(tiny("mixtral", CAUSAL))
    }
    assert experts["model.layers.{0-1}.mlp.experts.down_proj", "4 x 32 x 64", 2] == "MixtralExperts"
    assert {g.pattern.split(".")[-1] for g in other_weights(tiny("xlnet", CLASSES))} >= set("qkvor")
    assert other_weights(tiny_bert()) == other_weights(tiny_gpt2()) == []


def test_weights_that_are_no_linear_layers_are_named_if_they_are_many() -> None:
    model = tiny("gpt_oss", CAUSAL)
    parameters = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n)
    (line,) = other_weights_lines(model, parameters)
    router = sum(p.numel() for n, p in model.named_parameters() if n.endswith("router.bias"))
    assert f"they hold {(experts - router) / parameters:.0%} of the base model" in line
    assert line.startswith("no adapter on model.layers.{0-1}.mlp.")
    lfm2 = tiny("lfm2", CAUSAL)  # a few convolutions
    assert other_weights_lines(lfm2, sum(p.numel() for p in lfm2.parameters())) == []
