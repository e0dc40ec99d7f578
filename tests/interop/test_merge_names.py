"""Checkpoints whose names are not the running model's, and weights that are one or many there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from sora_cli.adapter.metadata import read_json, write_json
from sora_cli.adapter.reading import open_adapter
from sora_cli.core.errors import SoraError
from sora_cli.merge.merge import Merged, merge_adapter
from tests.helpers_adapters import assert_same, fill_peft, logits
from tests.helpers_models import (
    HIDDEN,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_vit,
    token_ids,
)


def _adapter(model: Any, directory: Path, **options: Any) -> Any:
    """A PEFT adapter with random numbers; the adapted model."""
    tuned = fill_peft(get_peft_model(model, LoraConfig(r=2, **options)))
    tuned.save_pretrained(directory)
    return tuned


def _merge(tmp: Path, **options: Any) -> Merged:
    with open_adapter(tmp / "adapter") as adapter:
        return merge_adapter(adapter, tmp / "out", base=str(tmp / "base"), **options)


def _refused(tmp: Path, message: str, **options: Any) -> SoraError:
    with pytest.raises(SoraError, match=message) as caught:
        _merge(tmp, **options)
    assert not [path for path in tmp.iterdir() if "out" in path.name]
    return caught.value


def _rename(directory: Path, change: Any) -> None:
    """Rename the tensors of a single-file checkpoint."""
    file = directory / "model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def _names(directory: Path) -> set[str]:
    return {name for file in directory.glob("*.safetensors") for name in load_file(file)}


def _loads_whole(model_class: Any, directory: Path) -> Any:
    model, info = model_class.from_pretrained(directory, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def test_backbone_without_its_prefix(tmp_path: Path) -> None:
    """As GPT-2 is on the Hub; nothing new is added, so the names stay."""
    model = tiny_gpt2()
    model.transformer.save_pretrained(tmp_path / "base")
    before = _names(tmp_path / "base")
    assert "h.0.attn.c_attn.weight" in before
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["c_attn"], task_type="CAUSAL_LM")
    _merge(tmp_path)
    assert _names(tmp_path / "out") == before
    assert_same(logits(_loads_whole(transformers.GPT2LMHeadModel, tmp_path / "out")), logits(tuned))


def test_a_new_head_beside_a_backbone_brings_the_prefix(tmp_path: Path) -> None:
    model = tiny_gpt2(num_labels=3)
    model.transformer.save_pretrained(tmp_path / "base")
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["c_attn"], task_type="SEQ_CLS")
    _merge(tmp_path)
    names = _names(tmp_path / "out")
    assert "score.weight" in names
    assert all(name.startswith("transformer.") for name in names - {"score.weight"})
    ours = _loads_whole(transformers.GPT2ForSequenceClassification, tmp_path / "out")
    assert_same(logits(ours), logits(tuned))


def test_names_of_older_versions_stay(tmp_path: Path) -> None:
    """LayerNorm.gamma, and ViT's names before version 5, which it is still written with."""
    model = tiny_bert()
    model.save_pretrained(tmp_path / "base")
    _rename(tmp_path / "base", lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma"))
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS")
    _merge(tmp_path)
    assert _names(tmp_path / "out") == _names(tmp_path / "base")
    ours = _loads_whole(transformers.BertForSequenceClassification, tmp_path / "out")
    assert_same(logits(ours), logits(tuned))


@pytest.mark.parametrize("older", [False, True], ids=["today", "older"])
def test_an_adapter_under_older_names(tmp_path: Path, older: bool) -> None:
    """ViT's layers were called otherwise before version 5, in checkpoints and in adapters."""
    model = tiny_vit()
    model.vit.save_pretrained(tmp_path / "base")
    assert any("attention.attention.query" in name for name in _names(tmp_path / "base"))
    options = {"target_modules": ["q_proj", "fc2"], "modules_to_save": ["classifier"]}
    tuned = _adapter(model, tmp_path / "adapter", **options)
    if older:
        _use_older_names(tmp_path / "adapter")
    assert _merge(tmp_path).modules == 4
    names = _names(tmp_path / "out")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in names
    ours = _loads_whole(transformers.ViTForImageClassification, tmp_path / "out")
    assert_same(logits(ours), logits(tuned))


def _use_older_names(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    changes = {"layers.": "encoder.layer.", "attention.q_proj": "attention.attention.query",
               "mlp.fc2": "output.dense"}  # fmt: skip

    def older(name: str) -> str:
        for new, old in changes.items():
            name = name.replace(new, old)
        return name

    tensors = {older(name): tensor for name, tensor in load_file(file).items()}
    assert sum("encoder.layer.1.output.dense.lora_A" in name for name in tensors) == 1
    save_file(tensors, file, metadata={"format": "pt"})
    config = read_json(adapter / "adapter_config.json")
    targets = ["attention.attention.query", "output.dense"]
    write_json(adapter / "adapter_config.json", {**config, "target_modules": targets})


def test_another_head_is_left_out(tmp_path: Path) -> None:
    masked = transformers.BertForMaskedLM(tiny_bert().config)
    masked.save_pretrained(tmp_path / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3
    )
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS",
                     modules_to_save=["pooler"])  # fmt: skip
    merged = _merge(tmp_path)
    assert merged.left_out
    assert all(name.startswith("cls.") for name in merged.left_out)
    ours = _loads_whole(transformers.BertForSequenceClassification, tmp_path / "out")
    assert_same(logits(ours), logits(tuned))


def test_tensors_the_model_does_not_know_stay_where_the_class_does(tmp_path: Path) -> None:
    """Such as the layers for several tokens at once that some checkpoints carry."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    more = {**load_file(file), "model.layers.2.more.weight": torch.ones(3)}
    save_file(more, file, metadata={"format": "pt"})
    _adapter(model, tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert not _merge(tmp_path).left_out
    assert torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["model.layers.2.more.weight"],
        torch.ones(3),
    )


def test_weights_that_are_put_together_are_copied(tmp_path: Path) -> None:
    """Mixtral's experts lie one by one in checkpoints; its attention can be adapted."""
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
        max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base")
    assert any(".experts.1.w1.weight" in name for name in _names(tmp_path / "base"))
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["q_proj", "o_proj"],
                     task_type="CAUSAL_LM")  # fmt: skip
    _merge(tmp_path)
    assert _names(tmp_path / "out") == _names(tmp_path / "base")
    ours = _loads_whole(transformers.MixtralForCausalLM, tmp_path / "out")
    assert_same(logits(ours), logits(tuned))


def test_a_target_that_is_cut_out_of_another_weight_is_refused(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        num_channels=1, use_swiglu_ffn=True,
    )  # fmt: skip
    model = transformers.Dinov2ForImageClassification(config)
    model.save_pretrained(tmp_path / "base")
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["gate_proj"])
    error = _refused(tmp_path, "is stored in another form, in '.*weights_in.weight'")
    assert "merge_and_unload() and save_pretrained()" in str(error.hint)
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    with torch.no_grad():
        expected = tuned.eval()(image).logits
        tuned.merge_and_unload().save_pretrained(tmp_path / "theirs")
        loaded = transformers.Dinov2ForImageClassification.from_pretrained(tmp_path / "theirs")
        assert_same(loaded(image).logits, expected)  # the hint is right


def test_weights_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    name = "bert.encoder.layer.0.attention.self.query.weight"
    tensors = load_file(file)
    tensors[name.removeprefix("bert.")] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    _adapter(model, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS")
    _refused(tmp_path, "twice")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_untied(tmp_path: Path, kind: str) -> None:
    """Both weights are written; the unmerged model's logits, which PEFT's own merge misses."""
    model = tiny_llama(tied=True) if kind == "llama" else tiny_gpt2()
    (model if kind == "llama" else model.transformer).save_pretrained(tmp_path / "base")
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["lm_head"], task_type="CAUSAL_LM")
    expected = logits(tuned)
    assert "--untie" in str(_refused(tmp_path, "shares its weight with").hint)
    assert _merge(tmp_path, untie=True).untied
    assert "lm_head.weight" in _names(tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is False
    assert_same(logits(_loads_whole(type(model), tmp_path / "out")), expected)
    with torch.no_grad():
        theirs = logits(tuned.merge_and_unload())
    assert (theirs - expected).abs().max() > 0.01 * expected.abs().max()


def test_an_output_layer_stored_in_full_is_untied(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    model.save_pretrained(tmp_path / "base")
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM",
                     modules_to_save=["lm_head"])  # fmt: skip
    expected = logits(tuned)
    _refused(tmp_path, "trained in full but shares its weight")
    _merge(tmp_path, untie=True)
    assert_same(logits(_loads_whole(type(model), tmp_path / "out")), expected)


def test_untie_changes_nothing_where_nothing_has_to_be_untied(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    model.save_pretrained(tmp_path / "base")
    _adapter(model, tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert not _merge(tmp_path, untie=True).untied
    assert "lm_head.weight" not in _names(tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is True


def test_an_encoder_decoder_is_not_untied(tmp_path: Path) -> None:
    """T5 scales the decoder's output, unless its configuration says tie_word_embeddings false."""
    model = tiny_t5()
    model.save_pretrained(tmp_path / "base")
    _adapter(model, tmp_path / "adapter", target_modules=["lm_head"], task_type="SEQ_2_SEQ_LM")
    _refused(tmp_path, "t5 cannot be untied", untie=True)


def test_another_encoder_decoder_is_not_untied_either(tmp_path: Path) -> None:
    config = transformers.BartConfig(
        vocab_size=64, d_model=HIDDEN, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "base")
    _adapter(model, tmp_path / "adapter", target_modules=["lm_head"], task_type="SEQ_2_SEQ_LM")
    _refused(tmp_path, "bart cannot be untied", untie=True)


def test_a_model_without_a_head_needs_no_pooler(tmp_path: Path) -> None:
    """It does not enter the last hidden state, and checkpoints of masked models lack it."""
    transformers.BertForMaskedLM(tiny_bert().config).save_pretrained(tmp_path / "base")
    model = transformers.BertModel.from_pretrained(tmp_path / "base").eval()
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["query"],
                     task_type="FEATURE_EXTRACTION")  # fmt: skip
    _merge(tmp_path)
    ours = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    ids = token_ids()
    with torch.no_grad():
        assert_same(ours(ids).last_hidden_state, tuned(ids).last_hidden_state)


def test_weights_stored_apart_are_not_tied(tmp_path: Path) -> None:
    """T5 v1.1 and Flan-T5: the configuration ties, the checkpoint holds two different weights."""
    model = tiny_t5()
    model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["shared.weight"].flip(0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    tuned = _adapter(loaded, tmp_path / "adapter", target_modules=["lm_head"],
                     task_type="SEQ_2_SEQ_LM")  # fmt: skip
    _merge(tmp_path)
    ours = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert_same(logits(ours), logits(tuned))


def test_an_adapter_without_a_task(tmp_path: Path) -> None:
    """Its class is the one the base names, where that has all of its layers."""
    model = tiny_bert()
    model.save_pretrained(tmp_path / "base")
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["query"])
    _merge(tmp_path)
    ours = _loads_whole(transformers.BertForSequenceClassification, tmp_path / "out")
    assert_same(logits(ours), logits(tuned))


def test_ids_of_labels(tmp_path: Path) -> None:
    """A base with two classes, an adapter with three and no names for them."""
    tiny_bert(num_labels=2).save_pretrained(tmp_path / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, ignore_mismatched_sizes=True
    )
    tuned = _adapter(model, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS")
    _merge(tmp_path)
    config = read_json(tmp_path / "out" / "config.json")
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    ours = _loads_whole(transformers.BertForSequenceClassification, tmp_path / "out")
    assert_same(logits(ours), logits(tuned))


def test_shards_and_their_index(tmp_path: Path) -> None:
    """One file for one, their tensors in their order; the new head is in the last."""
    model = tiny_llama(num_labels=3)
    model.model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    _adapter(model, tmp_path / "adapter", target_modules=["q_proj"], task_type="SEQ_CLS")
    _merge(tmp_path)
    old, new = (read_json(tmp_path / d / "model.safetensors.index.json") for d in ("base", "out"))
    files = sorted(set(old["weight_map"].values()))
    assert sorted(set(new["weight_map"].values())) == files
    assert new["weight_map"]["score.weight"] == files[-1]
    for name, file in old["weight_map"].items():
        assert new["weight_map"][f"model.{name}"] == file
    assert new["metadata"]["total_size"] == old["metadata"]["total_size"] + 3 * HIDDEN * 4
    for file in files[:-1]:
        before, after = (list(_header(tmp_path / d / file)) for d in ("base", "out"))
        assert after == [n if n == "__metadata__" else f"model.{n}" for n in before]
    assert_same(
        logits(_loads_whole(type(model), tmp_path / "out")),
        logits(PeftModel.from_pretrained(_with_head(tmp_path), tmp_path / "adapter").eval()),
    )


def _with_head(tmp: Path) -> Any:
    load = transformers.LlamaForSequenceClassification.from_pretrained
    return load(tmp / "base", num_labels=3)


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    return header


def test_a_head_takes_the_bases_dtype(tmp_path: Path) -> None:
    """Norms in float32 beside weights in bfloat16, and a head of odd size between them."""
    model = tiny_llama(num_labels=3)
    model.model.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    mixed = {
        name: tensor if "norm" in name else tensor.bfloat16()
        for name, tensor in load_file(file).items()
    }
    save_file(mixed, file, metadata={"format": "pt"})
    config = read_json(tmp_path / "base" / "config.json")
    write_json(tmp_path / "base" / "config.json", {**config, "dtype": "bfloat16"})
    _adapter(model, tmp_path / "adapter", target_modules=["q_proj"], task_type="SEQ_CLS")
    _merge(tmp_path)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged["score.weight"].dtype == torch.bfloat16
    assert torch.equal(
        merged["score.weight"], model.score.modules_to_save["default"].weight.bfloat16()
    )
    assert merged["model.norm.weight"].dtype == torch.float32
