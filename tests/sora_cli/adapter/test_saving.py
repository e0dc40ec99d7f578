"""An adapter saved from a model in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PvtConfig, PvtForImageClassification

from methods import inject, registry
from sora_cli.adapter.saving import save_adapter
from tests.helpers_runs import save_base, tiny_tokenizer


def test_a_model_whose_classes_have_no_names(tmp_path: Path) -> None:
    config = PvtConfig(
        image_size=32, num_encoder_blocks=1, depths=[1], sequence_reduction_ratios=[1],
        hidden_sizes=[8], patch_sizes=[4], strides=[4], num_attention_heads=[1], mlp_ratios=[2],
    )  # fmt: skip
    assert config.id2label is None
    model = PvtForImageClassification(config)
    base = save_base(model, tmp_path / "base")
    method = registry.create("lora", r=2)
    inject.inject(model, method, generator=torch.Generator())
    tokenizer = tiny_tokenizer()
    meta = save_adapter(
        model, method, tmp_path / "adapter", base_model=str(base), processor=tokenizer
    ).meta
    assert (tmp_path / "adapter" / "tokenizer.json").is_file()
    assert (tmp_path / "adapter" / "README.md").is_file()
    assert (meta.labels, meta.num_labels) == (None, config.num_labels)
