"""What a run leaves beside its weights for others: a card, its tokenizer, the base model's name."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe


def test_an_adapter_that_others_can_use(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, tiny_bert(num_labels=2), training={"max_steps": 3, "seed": 5},
        output={"dir": str(tmp_path / "out"), "base_id": "goo/bert", "license": "mit"},
    )  # fmt: skip
    report = train(recipe)
    adapter = tmp_path / "out" / "adapter"
    card = ModelCard.load(adapter / "README.md")
    assert (card.data.base_model, card.data.license) == ("goo/bert", "mit")
    (result,) = (r for r in card.data.eval_results if r.metric_type == "accuracy")
    assert result.metric_value == round(report.metrics["validation"]["accuracy"], 6)
    assert result.metric_args == {"seed": 5, "rows": 24}
    assert result.dataset_name == "train.jsonl, validation.jsonl"
    assert "datasets" not in card.data.to_dict()
    assert str(tmp_path) not in str(card)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "goo/bert"
    told = read_adapter(adapter)
    assert told.base.name() == str((tmp_path / "base").resolve())  # our commands know its place
    assert told.meta.training is not None
    assert (told.meta.training.steps, told.meta.training.rows["train"]) == (3, 48)
    own, base = (AutoTokenizer.from_pretrained(place) for place in (adapter, tmp_path / "base"))
    text = "the old cat sees every dog"
    assert own(text, text)["input_ids"] == base(text, text)["input_ids"]
    out = str(tmp_path / "pruned")
    assert run(["prune", str(adapter), "-o", out, "--rank", "1"]) == 0
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == base(text)["input_ids"]
