"""The files beside a base model that say how its vectors are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sora_cli.app import run
from sora_cli.report import read_report
from sora_cli.tasks.vectors import VectorForm, vector_form
from tests.helpers_errors import refusal
from tests.helpers_families import FAMILIES
from tests.helpers_models import tiny_bert
from tests.helpers_vectors import write_sentence_model
from tests.present import present

MODULES = ("Transformer", "Pooling", "Normalize")


def _folder(folder: Path, *modules: str, **files: Any) -> str:
    """A list of modules, and JSON files whose names have __ for a slash."""
    listed = [
        {
            "idx": i,
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for name, content in files.items():
        file = folder / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
    return str(folder)


def test_without_files_it_is_the_mean_of_unit_length(tmp_path: Path) -> None:
    for source in ("", str(tmp_path)):
        assert vector_form(source) == VectorForm()
        assert vector_form(source, pooling="last") == VectorForm(pooling="last")
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    tokens = torch.arange(12.0).view(2, 3, 2)
    mean = torch.stack([tokens[0, :2].mean(0), tokens[1].mean(0)])
    assert torch.allclose(VectorForm()(tokens, mask), mean / mean.norm(dim=1, keepdim=True))
    plain = VectorForm("last", layers=())(tokens.bfloat16(), mask)
    assert torch.equal(plain, torch.stack([tokens[0, 1], tokens[1, 2]]))
    assert plain.dtype == torch.float32


def test_the_former_keys_of_a_pooling_are_read(tmp_path: Path) -> None:
    former = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    form = vector_form(_folder(tmp_path, *MODULES, **{"1_Pooling__config": former}))
    assert (form.pooling, form.layers, form.listed) == ("cls", (None,), True)
    form = vector_form(_folder(tmp_path, "Transformer", "Pooling", **{"1_Pooling__config": {}}))
    assert (form.pooling, form.layers) == ("mean", ())


@pytest.mark.parametrize(("settings", "query", "document"), [
({"prompts": {"query": "q: ", "passage": "p: "}}, "q: ", "p: "),
({"prompts": {"query": "", "document": ""}}, "", ""),
({"prompts": {"query": "q: ", "all": "a: "}, "default_prompt_name": "all"}, "q: ", "a: "),
({"prompts": {}}, "", ""),
({}, "", ""),
])  # fmt: skip
def test_prompts_are_those_of_encode_query_and_encode_document(
    tmp_path: Path, settings: Any, query: str, document: str
) -> None:
    files = {
        "config_sentence_transformers": settings,
        "sentence_bert_config": {"max_seq_length": 9},
    }
    form = vector_form(_folder(tmp_path, *MODULES, **files))
    assert (form.query_prompt, form.document_prompt, form.max_length) == (query, document, 9)


WRONG: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "a module": (("Transformer", "Pooling", "LSTM"), {}, "auto"),
    "no pooling": (("Transformer", "Normalize"), {}, "auto"),
    "a pooling": (MODULES, {"1_Pooling__config": {"pooling_mode": "max"}}, "auto"),
    "two poolings": (MODULES, {"1_Pooling__config": {"pooling_mode": ["cls", "mean"]}}, "auto"),
    "the prompt left out": (MODULES, {"1_Pooling__config": {"include_prompt": False}}, "auto"),
    "another pooling": (MODULES, {}, "cls"),
    "no weights": (("Transformer", "Pooling", "Dense"), {"2_Dense__config": {}}, "auto"),
    "an activation": (
        ("Transformer", "Pooling", "Dense"),
        {"2_Dense__config": {"activation_function": "my.own.Code"}},
        "auto",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_computed_is_refused(tmp_path: Path, case: str) -> None:
    modules, files, pooling = WRONG[case]
    (tmp_path / "base").mkdir()
    source = _folder(tmp_path / "base", *modules, **files)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with refusal():
            vector_form(Path(source).name, pooling=pooling)


def test_a_base_model_without_a_pooler_gets_no_head(tmp_path: Path) -> None:
    recipe = FAMILIES["embedding"](tmp_path)
    model = tiny_bert().bert
    model.pooler = None
    model.save_pretrained(tmp_path / "base")
    assert run(["train", str(recipe), "training.max_steps=1"]) == 0
    report = present(read_report(tmp_path / "out"))
    assert report.parameters.head == 0
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert not config["modules_to_save"]


def test_a_run_says_what_the_files_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = FAMILIES["embedding"](tmp_path)
    assert run(["train", str(recipe), "training.max_steps=1", "--no-verify"]) == 0
    assert "no modules.json: a text's vector is the mean of its tokens" in capsys.readouterr().err
    base = write_sentence_model(tmp_path / "listed")
    (base / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    words = ["training.max_steps=1", f"model.path={base}", "output.dir=out2", "--no-verify"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run(["train", str(recipe), *words]) == 0
    told = capsys.readouterr().err
    assert "modules.json" not in told
    assert "cuts this model's texts at 16 tokens, not at data.max_length=128" in told
