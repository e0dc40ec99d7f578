"""`sora verify`: which base is taken, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from tests.helpers_adapters import save_backbone
from tests.helpers_errors import error_of
from tests.helpers_models import tiny_bert, tiny_llama
from tests.helpers_verify import (
    Made,
    classifier_of,
    facts_of,
    one_number_changed,
    refused,
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("bert"), *classifier_of("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("llama"), tiny_llama())


# bases


def test_base_given_by_hand(bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = shutil.copytree(bert.base, tmp_path / "moved")
    assert facts_of(capsys, bert.adapter, bert.merged, "--base", moved)[0] == 0
    other = save_backbone(tiny_bert(seed=1), tmp_path / "other")
    for words in ((bert.adapter, bert.merged), (bert.adapter,)):
        refused(capsys, *words, "--base", other)


def test_adapter_that_names_no_base(
    bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bert.adapter, tmp_path / "a")
    (tmp_path / "a" / "sora.json").unlink()
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    refused(capsys, tmp_path / "a", bert.merged)
    assert facts_of(capsys, tmp_path / "a", bert.adapter)[0] == 0, "the other one knows it"
    assert facts_of(capsys, tmp_path / "a", bert.merged, "--base", bert.base)[0] == 0


# what cannot be compared


def test_nothing_there(bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, bert.adapter, tmp_path / "nowhere")
    refused(capsys, "no_such_model", bert.merged)
    (tmp_path / "empty").mkdir()
    refused(capsys, tmp_path / "empty", bert.merged)
    (tmp_path / "file").write_text("x")
    refused(capsys, tmp_path / "file", bert.merged)


def test_two_files_of_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("a.csv", "b.jsonl"):
        Path(file).write_text("text\nx\n")
    refused(capsys, "a.csv", "b.jsonl")
    refused(capsys, "b.jsonl", "a.csv", "--max-drop", "1pt")
    shown_by_eval = error_of(capsys, "eval", "a.csv", "--recipe", "rte")
    assert shown_by_eval[0] == "error: a.csv holds rows, and no model, adapter or run"
    Path("c.json").write_text("{}")  # which may be an adapter's configuration
    assert "name its directory" in error_of(capsys, "eval", "c.json", "--recipe", "rte")[0]


def test_unrelated_things(
    bert: Made, llama: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, bert.adapter, llama.merged)
    words = (bert.adapter, llama.adapter, "--base", bert.base)
    refused(capsys, *words)
    shutil.copytree(llama.adapter, tmp_path / "a")
    (tmp_path / "a" / "sora.json").unlink()  # nothing says which weights it was trained on
    words = (bert.adapter, tmp_path / "a", "--base", bert.base)
    refused(capsys, *words)
    refused(capsys, bert.adapter, bert.base)
    tiny_bert(num_labels=2).save_pretrained(tmp_path / "two")
    refused(capsys, tmp_path / "two", bert.merged)
    refused(capsys, bert.merged, bert.merged, "--base", bert.base)


def test_head_that_was_not_stored(
    bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = bert.stored
    write_adapter(tmp_path / "a", Adapter.of(stored.layers, {}, (), "SEQ_CLS", stored.base,
                                          meta=stored.meta))  # fmt: skip
    refused(capsys, tmp_path / "a", bert.merged)


def test_damage(bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, part in (("model", "merged"), ("adapter_model", "adapter")):
        broken = shutil.copytree(getattr(bert, part), tmp_path / name)
        file = broken / f"{name}.safetensors"
        file.write_bytes(file.read_bytes()[:-50])
        refused(capsys, bert.adapter, broken)
    broken = one_number_changed(bert.merged, tmp_path / "nan", "classifier.bias", float("nan"))
    refused(capsys, bert.adapter, broken)


def test_quantised_model(bert: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(bert.merged, tmp_path / "q")
    file = tmp_path / "q" / "config.json"
    config = {**json.loads(file.read_text()), "quantization_config": {"quant_method": "gptq"}}
    file.write_text(json.dumps(config))
    refused(capsys, bert.adapter, tmp_path / "q")
