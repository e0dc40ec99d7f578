"""The model card beside an adapter: what the Hub reads of it, and what a person does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.card import rewrite_card, write_card
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, Training, step_words
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.core.console import printable
from sora_cli.recipe.tolerance import AGREEMENT
from tests.golden import NUMBER, told
from tests.helpers_markdown import HOSTILE, tokens

QUERY, KEY = "enc.layer.0.query", "enc.layer.1.key"
COMMIT = "a" * 40
TRAINING = Training(
    name="rte", data=("nyu-mll/glue",), hub_data=True, configuration="rte", rows={
        "train": 2000, "validation": 277}, seed=7, steps=40, metric="accuracy",
    metrics={"validation": {"accuracy": 0.71234567, "f1": None, "loss": 0.5}},
    selection="checkpoint chosen on validation", base_parameters=1000, license="apache-2.0",
)  # fmt: skip


def _adapter(**changes: Any) -> Adapter:
    layers = {QUERY: LowRankFactors(torch.rand(2, 6), torch.rand(5, 2)),
              KEY: LowRankFactors(torch.zeros(3, 6), torch.zeros(5, 3))}  # fmt: skip
    meta = AdapterMeta(method="sora", task="sequence-classification", labels=("no", "yes"),
                       training=TRAINING, method_config={"r_max": 3, "l1": 0.0})  # fmt: skip
    base = BaseReference("/home/me/secret/bert", "/home/me/secret/bert", COMMIT, "x:1", "goo/bert")
    values = {"layers": layers, "head": {}, "head_modules": (), "task_type": "SEQ_CLS"}
    return Adapter.of(**{**values, "base": base, "meta": meta, **changes})


def _card(folder: Path, **changes: Any) -> ModelCard:
    write_adapter(folder, _adapter(**changes), describe=write_card)
    return ModelCard.load(folder / "README.md")


def test_what_the_hub_reads(tmp_path: Path) -> None:
    data = _card(tmp_path / "a").data
    assert data.to_dict() == {
        "base_model": "goo/bert", "library_name": "peft", "license": "apache-2.0",
        "datasets": ["nyu-mll/glue"], "metrics": ["accuracy"],
        "pipeline_tag": "text-classification",
        "tags": ["base_model:adapter:goo/bert", "lora", "sora"],
        "model-index": data.to_dict()["model-index"],
    }  # fmt: skip
    (result,) = data.eval_results
    assert (result.dataset_config, result.dataset_split) == ("rte", "validation")
    assert (result.metric_value, result.metric_args) == (0.712346, {"seed": 7, "rows": 277})


def test_what_a_person_reads(tmp_path: Path) -> None:
    told(str(_card(tmp_path / "a")))


def test_vllm_is_told_the_rank(tmp_path: Path) -> None:
    told(str(_card(tmp_path / "a", task_type="CAUSAL_LM")))


def test_without_a_hub_id_no_path_is_told(tmp_path: Path) -> None:
    base = BaseReference("/home/me/secret/bert", "/home/me/secret/bert")
    card = _card(tmp_path / "a", base=base)
    assert "base_model" not in card.data.to_dict()
    told(str(card))


def test_scores_of_an_adapter_that_was_cut_are_not_its_own(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", _adapter(), describe=write_card)
    assert run(["prune", str(tmp_path / "a"), "-o", str(tmp_path / "b"), "--rank", "1"]) == 0
    card = ModelCard.load(tmp_path / "b" / "README.md")
    assert "model-index" not in card.data.to_dict()
    told(str(card), hide=NUMBER)


def test_of_another_tools_adapter(tmp_path: Path) -> None:
    meta = AdapterMeta()
    told(str(_card(tmp_path / "a", meta=meta, task_type=None, base=BaseReference("", ""))))


@pytest.mark.parametrize("lineage", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_others_named_does_no_harm(name: str, lineage: bool, tmp_path: Path) -> None:
    """Wherever a name can stand: it is shown, and the header stays what the Hub reads."""
    training = TRAINING.model_copy(update={
        "name": name, "data": (name,), "configuration": name, "rows": {name: 1}, "selection": name,
        "metrics": {name: {name: 0.5}}, "license": name, "data_revision": name,
    })  # fmt: skip
    meta = _adapter().meta.model_copy(update={
        "training": training, "labels": (name, "no"), "method_config": {name: name}, "method": name,
        "lineage": ({"command": name, name: name},) if lineage else (),
    })  # fmt: skip
    base = BaseReference(name, name, name, name, hub_id=f"no id{name}")
    assert base.hub_id is None
    card = _card(tmp_path / "a", meta=meta, base=base)
    rewrite_card(tmp_path / "a", [f"Certified: {name}."])
    assert card.data.to_dict() == ModelCard.load(tmp_path / "a" / "README.md").data.to_dict()
    assert (card.data.license, card.data.datasets) == (name, [name])
    assert lineage or card.data.model_name == name
    parts = list(tokens((tmp_path / "a" / "README.md").read_text().partition("\n---\n")[2]))
    blocks = ("heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td")
    assert {part.type for part in parts} <= {
        "inline", "text", "text_special", "code_inline", "softbreak", "fence",
        *(f"{block}_{end}" for block in blocks for end in ("open", "close")),
    }  # fmt: skip
    assert sum(part.type == "heading_open" for part in parts) == 6
    cells = ["".join(inner.content for inner in part.children or ()) for part in parts]
    assert f"{printable(' '.join(name.split()))}, no" in cells


def test_a_step_of_the_lineage_in_words() -> None:
    promise = {"command": "prune", "max_differ": 0.01, "given": "1%", "drop": 0.004}
    assert step_words({**promise, "metric": AGREEMENT, "bits": None}) == (
        f"prune: max differ 1%, share that differs 0.004, metric {AGREEMENT}"
    )
    assert step_words({**promise, "metric": "f1"}) == "prune: max differ 1%, drop 0.004, metric f1"
    assert step_words({"command": "merge"}) == "merge"


def test_equal_adapters_have_equal_cards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    adapter = _adapter()
    for name in "ab":
        write_adapter(tmp_path / name, dataclasses.replace(adapter), describe=write_card)
    first, second = ((tmp_path / name / "README.md").read_bytes() for name in "ab")
    assert first == second
    rewrite_card(tmp_path / "a", [])
    assert (tmp_path / "a" / "README.md").read_bytes() == first
    rewrite_card(tmp_path / "a", ["Certified: kept."])
    assert b"## Certificate\n\nCertified: kept.\n" in (tmp_path / "a" / "README.md").read_bytes()


@pytest.mark.parametrize("command", ["prune", "export"])
def test_facts_go_along(command: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", _adapter(), describe=write_card)
    assert run([command, str(tmp_path / "a"), "-o", str(tmp_path / "b")]) in (0, 3)
    assert read_adapter(tmp_path / "b").meta.training == TRAINING
