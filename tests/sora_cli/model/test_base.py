"""Base models: what counts as the head, what a seed decides, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sora_cli.core.errors import SoraError
from sora_cli.model.base import Base, head_modules, load_base
from sora_cli.recipe.recipe import DataBlock, ModelBlock, Recipe, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from tests.helpers_adapters import CLASSIFIERS
from tests.helpers_models import tiny_bert, tiny_gpt2, token_ids
from tests.helpers_runs import glue_rows, save_base, tiny_tokenizer


def _task(glue: str = "rte") -> Task:
    name = "sequence-regression" if glue == "stsb" else "sequence-classification"
    task = create_task(TaskBlock(name=name), DataBlock(path="unused"))
    task.bind(glue_rows(glue, 6))
    return task


def _load(path: Path | str, *, glue: str = "rte", seed: int = 0, **options: Any) -> Base:
    block = ModelBlock(path=str(path), **options.pop("block", {}))
    transformers.set_seed(seed)
    return load_base(block, _task(glue), **options)


def _without(folder: Path, *names: str) -> Path:
    """The checkpoint with tensors taken out."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in names:
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_head_of_each_architecture(tmp_path: Path, kind: str) -> None:
    """In memory, and read from a checkpoint of the backbone alone, where the head is missing."""
    make, expected = CLASSIFIERS[kind]
    assert head_modules(make(), ()) == expected
    base = _load(save_base(make(), tmp_path / "base"))
    assert base.head == expected
    new = {name.rpartition(".")[0] for name in base.missing}
    assert new  # there was no head in the file
    assert all(any(n == h or n.startswith(f"{h}.") for h in expected) for n in new)


def test_backbone_of_the_checkpoint_is_loaded(tmp_path: Path) -> None:
    original = tiny_bert(seed=3)
    base = _load(save_base(original, tmp_path / "base"))
    loaded = base.model.bert.state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in original.bert.state_dict().items())
    assert base.model.config.num_labels == 2
    assert base.model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert base.reference == str(tmp_path / "base")


def test_without_a_new_head_only_what_is_missing_is_trained() -> None:
    assert head_modules(tiny_bert(), (), new_head=False) == ()
    missing = ["bert.encoder.layer.0.output.dense.weight"]
    assert head_modules(tiny_bert(), missing, new_head=False) == (
        "bert.encoder.layer.0.output.dense",
    )


def test_missing_backbone_parameters_make_their_modules_trained(tmp_path: Path) -> None:
    names = (
        "encoder.layer.1.output.dense.weight",
        "encoder.layer.0.attention.output.LayerNorm.bias",
    )
    base = _load(_without(save_base(tiny_bert(), tmp_path / "base"), *names))
    assert {f"bert.{name}" for name in names} <= set(base.missing)
    assert base.head == (
        "bert.encoder.layer.0.attention.output.LayerNorm",
        "bert.encoder.layer.1.output.dense",
        "bert.pooler",
        "classifier",
    )


def test_missing_pooler_is_the_pooler_once(tmp_path: Path) -> None:
    folder = save_base(tiny_bert(), tmp_path / "base")
    base = _load(_without(folder, "pooler.dense.weight", "pooler.dense.bias"))
    assert "bert.pooler.dense.weight" in base.missing
    assert base.head == ("bert.pooler", "classifier")


def test_missing_module_is_trained_not_adapted(tmp_path: Path) -> None:
    from sora_cli.run.prepare import add_adapters

    path = "bert.encoder.layer.1.output.dense"
    base = _load(_without(save_base(tiny_bert(), tmp_path / "base"), path[5:] + ".weight"))
    recipe = Recipe(
        model={"path": "x"}, task={"name": "sequence-classification"}, data={"path": "x"},
        method={"name": "sora"},
    )  # fmt: skip
    _, layers = add_adapters(recipe, base)
    assert path not in layers
    assert len(layers) == 11  # 2 layers x 6, less that one
    trained = {n for n, p in base.model.named_parameters() if p.requires_grad}
    assert {f"{path}.weight", f"{path}.bias", "classifier.weight"} <= trained
    assert "bert.encoder.layer.0.output.dense.base.weight" not in trained


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_new_head_is_the_seeds(tmp_path: Path, kind: str) -> None:
    folder = save_base(CLASSIFIERS[kind][0](), tmp_path / "base")

    def head(seed: int) -> torch.Tensor:
        base = _load(folder, seed=seed)
        return next(base.model.get_submodule(base.head[-1]).parameters()).detach()

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_model_dropout_sets_every_dropout(tmp_path: Path, kind: str) -> None:
    folder = save_base(CLASSIFIERS[kind][0](), tmp_path / "base")
    base = _load(folder, dropout=0.25)
    rates = [m.p for m in base.model.modules() if isinstance(m, torch.nn.Dropout)]
    rates += [m.drop_prob for m in base.model.modules() if type(m).__name__ == "StableDropout"]
    assert set(rates) <= {0.25}
    assert rates or base.model.config.attention_dropout == 0.25
    assert "dropout" in str(base.model.config.to_dict())
    quiet = _load(folder, dropout=0.0).model.train()
    ids = token_ids()
    with torch.no_grad():
        assert torch.equal(quiet(input_ids=ids).logits, quiet(input_ids=ids).logits)


def test_dropout_of_the_checkpoint_stays(tmp_path: Path) -> None:
    folder = save_base(tiny_bert(hidden_dropout_prob=0.3), tmp_path / "base")
    assert _load(folder).model.bert.embeddings.dropout.p == 0.3


def test_regression_has_one_output(tmp_path: Path) -> None:
    base = _load(save_base(tiny_bert(), tmp_path / "base"), glue="stsb")
    assert base.model.config.problem_type == "regression"
    assert base.model.classifier.out_features == 1


def test_dtype_of_the_frozen_weights(tmp_path: Path) -> None:
    folder = save_base(tiny_bert().to(torch.bfloat16), tmp_path / "base")
    assert _load(folder).model.dtype == torch.float32
    assert _load(folder, block={"dtype": "auto"}).model.dtype == torch.bfloat16


def _gpt2(folder: Path, *, eos: bool) -> Path:
    """As GPT-2 comes: neither the model nor the tokenizer has a padding token."""
    tiny_gpt2(num_labels=2).base_model.save_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.pad_token_id = None
    config.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]" if eos else None
    tokenizer.save_pretrained(folder)
    return folder


def test_padding_token_of_gpt2(tmp_path: Path) -> None:
    base = _load(_gpt2(tmp_path / "base", eos=True))
    assert base.processor.pad_token == "[SEP]"
    assert base.model.config.pad_token_id == base.processor.pad_token_id == 3
    batch = base.processor(["the cat", "the cat sees a dog"], padding=True, return_tensors="pt")
    alone = base.processor(["the cat"], return_tensors="pt")
    base.model.eval()
    with torch.no_grad():
        both, one = base.model(**batch).logits, base.model(**alone).logits
    torch.testing.assert_close(both[:1], one)


def test_no_token_to_pad_with(tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="neither a padding nor an end-of-text token"):
        _load(_gpt2(tmp_path / "base", eos=False))
