"""Adapters we write load in PEFT, adapters PEFT writes load here, and all give the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.reading import read_adapter
from sora_cli.commands.inspect import inspect
from sora_cli.commands.merge import merge
from sora_cli.commands.prune import prune
from sora_cli.model.files import ADAPTER_CONFIG
from tests.helpers_adapters import (
    CAUSAL,
    CLASSIFIERS,
    LABELS,
    R_MAX,
    adapt,
    assert_same,
    logits,
    save_backbone,
)
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama


def _load(directory: Path, adapter: Adapter) -> Any:
    """The base or merged model as anybody would load it; a head that is not there is random."""
    if adapter.task_type == "CAUSAL_LM":
        return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=len(LABELS)
    ).eval()


def _peft_logits(base: Path, directory: Path, adapter: Adapter) -> Tensor:
    return logits(PeftModel.from_pretrained(_load(base, adapter), directory).eval())


def _check_everywhere(tmp: Path, base: Path, adapter: Adapter, expected: Tensor) -> None:
    """Through PEFT in both layouts, losslessly pruned through PEFT, and merged."""
    write_adapter(tmp / "adapter", adapter)
    assert_same(_peft_logits(base, tmp / "adapter", adapter), expected)
    write_adapter(tmp / "padded", adapter, layout="padded")
    assert_same(_peft_logits(base, tmp / "padded", adapter), expected)
    prune(tmp / "adapter", tmp / "pruned")
    assert_same(_peft_logits(base, tmp / "pruned", adapter), expected)
    merge(tmp / "adapter", tmp / "merged")
    assert_same(logits(_load(tmp / "merged", adapter)), expected)


@pytest.mark.parametrize("ranks", ["full", "mixed", "dead"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_the_trained_models_logits(tmp_path: Path, name: str, ranks: str) -> None:
    make, head = CLASSIFIERS[name]
    model = make()
    before = logits(model)
    base = save_backbone(model, tmp_path / "base")
    adapter = adapt(model, base, head=head, ranks=ranks)
    expected = logits(model)
    assert (expected - before).abs().max() > 0.01 * before.abs().max()
    _check_everywhere(tmp_path, base, adapter, expected)


@pytest.mark.versions
@pytest.mark.parametrize("ranks", ["full", "mixed", "dead"])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_give_the_trained_models_logits(
    tmp_path: Path, name: str, ranks: str
) -> None:
    model = CAUSAL[name]()
    before = logits(model)
    base = save_backbone(model, tmp_path / "base")
    adapter = adapt(model, base, ranks=ranks)
    expected = logits(model)
    changed = (expected - before).abs().max() > 0.01 * before.abs().max()
    assert bool(changed) == (ranks != "dead")
    _check_everywhere(tmp_path, base, adapter, expected)


def test_mixed_ranks_are_forced_by_the_helper(tmp_path: Path) -> None:
    adapter = adapt(tiny_bert(), save_backbone(tiny_bert(), tmp_path / "base"))
    assert set(adapter.ranks().values()) == set(range(R_MAX + 1))


def test_configuration_has_the_interop_values(tmp_path: Path) -> None:
    model = tiny_gpt2(num_labels=3)
    adapter = adapt(model, save_backbone(model, tmp_path / "base"), head=("score",))
    write_adapter(tmp_path / "adapter", adapter)
    config = read_json(tmp_path / "adapter" / ADAPTER_CONFIG)
    alive = {path: rank for path, rank in adapter.ranks().items() if rank}
    assert config["r"] == config["lora_alpha"] == R_MAX
    assert config["target_modules"] == sorted(alive)
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["rank_pattern"]) == sum(rank != R_MAX for rank in alive.values())
    assert config["modules_to_save"] == ["score"]
    assert config["fan_in_fan_out"] is True
    assert config["init_lora_weights"] is True


PEFT_OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 16},
    "rslora": {"r": 4, "lora_alpha": 12, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 16,
        "rank_pattern": {"query": 2, "layer.1.output.dense": 6, "^x": 3},
        "alpha_pattern": {r"layer\.1\..*": 3, "query": 7.5},
    },
    "rslora-patterns": {
        "r": 5,
        "use_rslora": True,
        "rank_pattern": {"value": 3, ".*query": 1},
        "alpha_pattern": {"value": 9},
    },
    "gaussian": {"r": 2, "init_lora_weights": "gaussian"},
}


def _peft_adapter(
    tmp: Path, model: Any, targets: list[str] | str, options: dict[str, Any]
) -> tuple[Path, Tensor]:
    """An adapter PEFT wrote, with random factors and head, and the logits of the model it is of."""
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(target_modules=targets, **options)).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.2)
    tuned.save_pretrained(tmp / "peft")
    return tmp / "peft", logits(tuned)


@pytest.mark.versions
@pytest.mark.parametrize("kind", PEFT_OPTIONS)
def test_adapters_written_by_peft(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_backbone(tiny_bert(), tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    targets = ["query", "value", "output.dense", "intermediate.dense"]
    options = {"task_type": "SEQ_CLS", **PEFT_OPTIONS[kind]}
    directory, expected = _peft_adapter(tmp_path, model, targets, options)
    adapter = read_adapter(directory)
    assert adapter.head_modules == ("classifier",)
    inspect([directory])
    assert "another tool" in capsys.readouterr().out
    prune(directory, tmp_path / "pruned")
    assert_same(_peft_logits(base, tmp_path / "pruned", adapter), expected)
    prune(directory, tmp_path / "same", rank=99)
    assert_same(_peft_logits(base, tmp_path / "same", adapter), expected)
    for source in ("peft", "pruned"):
        out = tmp_path / f"merged-{source}"
        merge(tmp_path / source, out, base=str(base))
        assert_same(logits(_load(out, adapter)), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_causal_adapters_written_by_peft(tmp_path: Path, kind: str) -> None:
    model = tiny_gpt2() if kind == "gpt2" else tiny_llama()
    model.save_pretrained(tmp_path / "base")
    targets = ["c_attn", "c_proj"] if kind == "gpt2" else "all-linear"
    options = {"task_type": "CAUSAL_LM", "r": 3, "fan_in_fan_out": kind == "gpt2"}
    directory, expected = _peft_adapter(tmp_path, model, targets, options)
    merge(directory, tmp_path / "merged", base=str(tmp_path / "base"))
    adapter = read_adapter(directory)
    assert_same(logits(_load(tmp_path / "merged", adapter)), expected)


def test_float16_adapter_is_folded_in_float32(tmp_path: Path) -> None:
    model = tiny_llama().half()
    options = {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 7}
    tuned = get_peft_model(
        model, LoraConfig(target_modules=["q_proj"], **options), autocast_adapter_dtype=False
    )
    tuned.save_pretrained(tmp_path / "peft")
    adapter = read_adapter(tmp_path / "peft")
    layer = tuned.base_model.model.model.layers[0].self_attn.q_proj
    stored = layer.lora_B["default"].weight.float() * (7 / 3)
    assert torch.equal(adapter.layers["model.layers.0.self_attn.q_proj"].B, stored)
