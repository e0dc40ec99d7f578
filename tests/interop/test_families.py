"""One tiny model of each task family, through everything that comes after training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from methods import inject, registry
from methods.errors import MethodError
from sora_cli.adapter.classes import auto_class_of, task_type_of
from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.saving import save_adapter
from sora_cli.app import run
from sora_cli.model.files import ADAPTER_CONFIG
from sora_cli.verify.difference import compare
from sora_cli.verify.outputs import run_model
from sora_cli.verify.probes import SENTENCES, make_probe
from tests.helpers_adapters import R_MAX, assert_same, randomise
from tests.helpers_models import (
    VOCABULARY,
    model_inputs,
    tiny_bart,
    tiny_bert_for,
    tiny_clip,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_vit,
)
from tests.helpers_verify import one_number_changed


@dataclass(frozen=True)
class Family:
    """A model; its head, which the base checkpoint lacks; PEFT's task type; its tied weights."""

    make: Callable[[], Any]
    task_type: str | None
    head: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()


T5_TIED = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
FAMILIES = {
    "questions": Family(partial(tiny_bert_for, "QuestionAnswering"), "QUESTION_ANS",
                        ("qa_outputs",)),
    "tokens": Family(partial(tiny_bert_for, "TokenClassification"), "TOKEN_CLS", ("classifier",)),
    "choices": Family(partial(tiny_bert_for, "MultipleChoice"), None,
                      ("bert.pooler.dense", "classifier")),
    "t5": Family(tiny_t5, "SEQ_2_SEQ_LM", tied=T5_TIED),
    "bart": Family(tiny_bart, "SEQ_2_SEQ_LM",
                   tied=("lm_head.weight", "model.encoder.embed_tokens.weight",
                         "model.decoder.embed_tokens.weight")),
    "gpt2": Family(tiny_gpt2, "CAUSAL_LM", tied=("lm_head.weight",)),
    "llama": Family(partial(tiny_llama, tied=True), "CAUSAL_LM", tied=("lm_head.weight",)),
    "decoder-classes": Family(partial(tiny_llama, num_labels=3), "SEQ_CLS", ("score",)),
    "images": Family(tiny_vit, None, ("classifier",)),
    "image-text": Family(tiny_clip, None),
}  # fmt: skip


class Case:
    """A base without its head, and an adapter of it with a random head, as directories."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self.folder = family, folder
        self.base, self.adapter = folder / "base", folder / "adapter"
        full = family.make()
        self.labels = full.config.num_labels
        self.kind = type(full)
        (full.base_model if family.head else full).save_pretrained(self.base)
        model = self.load(self.base)
        self.unadapted = outputs(model)
        generator = torch.Generator().manual_seed(1)
        method = registry.create("sora", r_max=R_MAX)
        self.layers = inject.inject(model, method, trainable=family.head, generator=generator)
        randomise(model, self.layers, family.head, ranks="mixed", generator=generator)
        self.expected = outputs(model.eval())
        save_adapter(model, method, self.adapter, base_model=str(self.base))

    def load(self, directory: Path) -> Any:
        """Whatever is not in the directory is drawn anew, from another seed each time."""
        return self.kind.from_pretrained(directory, num_labels=self.labels).eval()

    def adapted(self, adapter: Path) -> Tensor:
        """What PEFT gives with an adapter on a freshly loaded base."""
        return outputs(PeftModel.from_pretrained(self.load(self.base), adapter).eval())


def outputs(model: Any) -> Tensor:
    """The model's outputs on fixed random inputs, in one tensor."""
    inner = model.base_model.model if isinstance(model, PeftModel) else model
    inputs = model_inputs(inner)
    if type(inner).__name__.endswith("MultipleChoice"):
        inputs = {name: ids.reshape(2, 2, -1) for name, ids in inputs.items()}
    with torch.no_grad():
        given = model(**inputs)
    names = [n for n in ("start_logits", "end_logits", "logits", "logits_per_image") if n in given]
    assert names
    return torch.cat([given[name] for name in names])


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def test_peft_loads_what_is_saved(case: Case) -> None:
    """Equal outputs on a fresh model: the layers, and the head, whose base weights are random."""
    changed = (case.expected - case.unadapted).abs().max()
    assert changed > 0.05 * case.expected.abs().max()
    assert_same(case.adapted(case.adapter), case.expected)
    config = read_json(case.adapter / ADAPTER_CONFIG)
    assert config["task_type"] == case.family.task_type
    assert tuple(config["modules_to_save"] or ()) == case.family.head
    assert not [path for path in config["target_modules"] if path.endswith("lm_head")]


def test_inspect_tells_ranks_and_head(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    facts = said(capsys, "inspect", case.adapter, "--json")
    live = {
        path: int(layer.factors().live_components().sum()) for path, layer in case.layers.items()
    }
    assert {path: rank["live"] for path, rank in facts["ranks"].items()} == live
    assert tuple(facts["head_modules"]) == case.family.head
    classes = {"TOKEN_CLS", "SEQ_CLS"}
    names_classes = case.family.task_type in classes or case.kind.__name__.startswith("ViT")
    assert (facts["labels"] is not None) == names_classes


def test_export(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    out = case.folder / "padded"
    assert run(["export", str(case.adapter), "-o", str(out), "--layout", "padded"]) == 0
    assert "verified: " in capsys.readouterr().err
    assert_same(case.adapted(out), case.expected)


def test_prune(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing lost without a bound; at rank 1 what PEFT gives is what the file says."""
    out = case.folder / "pruned"
    assert run(["prune", str(case.adapter), "-o", str(out), "--rank", "1"]) == 0
    facts = said(capsys, "inspect", out, "--json")
    assert max(rank["live"] for rank in facts["ranks"].values()) == 1
    assert tuple(facts["head_modules"]) == case.family.head
    changed = (case.adapted(out) - case.expected).abs().max()
    assert changed > 1e-3 * case.expected.abs().max()


def test_merge_and_verify(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    out = case.folder / "merged"
    assert run(["merge", str(case.adapter), "-o", str(out)]) == 0
    assert "verified: " in capsys.readouterr().err
    model, info = case.kind.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(outputs(model.eval()), case.expected)
    assert model.config.architectures == [case.kind.__name__]
    assert model.config.num_labels == case.labels
    names = stored(out)
    assert names.isdisjoint(case.family.tied)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert len({id(parameters[name]) for name in case.family.tied}) <= 1

    facts = said(capsys, "verify", case.adapter, out, "--json")
    assert facts["same"]
    assert facts["effect"] > 0.01
    changed = case.family.head[-1] if case.family.head else list(case.layers)[-1]
    name = next(name for name in sorted(names) if name.endswith(f"{changed}.weight"))
    wrong = one_number_changed(out, case.folder / "wrong", name, 0.5)
    assert run(["verify", str(case.adapter), str(wrong)]) == 1


PADDED = {
    "questions": (torch.int64, 2, "pairs of sentences"),
    "tokens": (torch.int64, 2, "sentences"),
    "choices": (torch.int64, 3, "pairs of sentences"),
    "decoder-classes": (torch.int64, 2, "pairs of sentences"),
}


@pytest.mark.parametrize("name", PADDED)
def test_probes_of_sentences(name: str) -> None:
    """Short rows are filled up, and what is there does not count in the comparison."""
    kind, dimensions, words = PADDED[name]
    model = FAMILIES[name].make()
    model.config.architectures = [type(model).__name__]
    auto = auto_class_of(model.config)
    probe = make_probe([model.config], auto, word_tokenizer())
    ids, mask = probe.inputs["input_ids"], probe.inputs["attention_mask"]
    assert (ids.dtype, ids.ndim) == (kind, dimensions)
    assert words in probe.what
    assert not mask.all()
    values = run_model(model, probe, "it")
    other = {key: value.clone() for key, value in values.items()}
    for value in other.values():
        if value.shape[:2] == mask.shape:
            value[mask == 0] += 1e3
    assert all(d.largest == 0 for d in compare(values, other, probe, decides=True))
    other = {key: value + 1 for key, value in values.items()}
    assert all(d.largest > 0.9 for d in compare(values, other, probe, decides=True))


def test_probes_of_texts_and_pictures() -> None:
    model = tiny_clip()
    probe = make_probe([model.config], auto_class_of(model.config), None)
    assert probe.inputs["input_ids"].shape[0] == 6
    assert probe.inputs["pixel_values"].shape == (4, 1, 8, 8)
    given = run_model(model, probe, "it")["logits_per_image"]
    assert given.shape == (4, 6)
    assert len(set(given.flatten().tolist())) == 24


def test_shards_of_a_tied_model_hold_no_copy(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "merged"
    tiny_llama(tied=True).save_pretrained(base, max_shard_size="20KB")
    model = type(tiny_llama()).from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    method = registry.create("sora", r_max=R_MAX)
    layers = inject.inject(model, method, generator=generator)
    randomise(model, layers, (), ranks="mixed", generator=generator)
    save_adapter(model.eval(), method, tmp_path / "adapter", base_model=str(base))
    assert run(["merge", str(tmp_path / "adapter"), "-o", str(out)]) == 0
    index = read_json(out / "model.safetensors.index.json")["weight_map"]
    assert len(set(index.values())) > 1
    assert "lm_head.weight" not in index
    assert "model.embed_tokens.weight" in index
    assert_same(outputs(type(model).from_pretrained(out).eval()), outputs(model))


TIED = [name for name, family in FAMILIES.items() if family.tied]


@pytest.mark.parametrize("name", TIED)
def test_a_tied_output_layer_is_refused_by_name(name: str) -> None:
    model = FAMILIES[name].make()
    method = registry.create("lora", r=2, targets=["lm_head"])
    with pytest.raises(MethodError, match="'lm_head' shares its weight with"):
        inject.inject(model, method, generator=torch.Generator())
    assert not inject.adapted_layers(model)


def test_an_output_layer_of_its_own_is_adapted_by_name(tmp_path: Path) -> None:
    """In PEFT and merged: what the untied model gives."""
    base, out = tmp_path / "base", tmp_path / "merged"
    tiny_llama().save_pretrained(base)
    load = type(tiny_llama()).from_pretrained
    model = load(base)
    generator = torch.Generator().manual_seed(0)
    method = registry.create("sora", r_max=R_MAX, targets=["q_proj", "lm_head"])
    layers = inject.inject(model, method, generator=generator)
    assert list(layers)[-1] == "lm_head"
    randomise(model, layers, (), ranks="full", generator=generator)
    save_adapter(model.eval(), method, tmp_path / "adapter", base_model=str(base))
    assert_same(outputs(PeftModel.from_pretrained(load(base), tmp_path / "adapter").eval()),
                outputs(model))  # fmt: skip
    assert run(["merge", str(tmp_path / "adapter"), "-o", str(out)]) == 0
    assert_same(outputs(load(out).eval()), outputs(model))


CLASSES = {
    "BertForQuestionAnswering": ("AutoModelForQuestionAnswering", "QUESTION_ANS"),
    "XLNetForQuestionAnsweringSimple": ("AutoModelForQuestionAnswering", "QUESTION_ANS"),
    "RobertaForTokenClassification": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "BertForMultipleChoice": ("AutoModelForMultipleChoice", None),
    "T5ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "Gemma3ForConditionalGeneration": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "GPT2LMHeadModel": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "LlamaForSequenceClassification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "DeiTForImageClassificationWithTeacher": ("AutoModelForImageClassification", None),
    "CLIPModel": ("AutoModel", None),
    "BertModel": ("AutoModel", None),
    "SomebodysForTokenClassification": ("AutoModelForTokenClassification", "TOKEN_CLS"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_auto_classes(name: str) -> None:
    """Also of a class that is not in transformers, by the ending of its name."""
    auto, task_type = CLASSES[name]
    config = transformers.PretrainedConfig(architectures=[name])
    assert (auto_class_of(config), task_type_of(name)) == (auto, task_type)


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """It knows most words of the probes' sentences, so that rows differ in length."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=VOCABULARY, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )


def said(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What a command prints with --json."""
    capsys.readouterr()
    code = run([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    facts: dict[str, Any] = json.loads(captured.out)
    return facts


def stored(directory: Path) -> set[str]:
    """Names of the tensors in a model directory."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        return set(file.keys())
