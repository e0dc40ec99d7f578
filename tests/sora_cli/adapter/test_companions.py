"""The tokenizer beside an adapter is the one that the run had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPImageProcessor

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.companions import auto_of, copy_processor, gives_the_same, save_processor
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.app import run
from sora_cli.data.processor import load_processor
from tests.helpers_runs import files_of, tiny_tokenizer
from tests.present import present

AUTO = "AutoTokenizer"


def test_it_is_there_whatever_the_last_batch_was(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert auto_of(tokenizer) == AUTO
    tokenizer(["the cat", "a dog sees"], padding=True, truncation=True, max_length=3)
    for name, length in (("a", 3), ("b", 5)):
        tokenizer(["the cat"], padding="max_length", truncation=True, max_length=length)
        (tmp_path / name).mkdir()
        assert save_processor(tokenizer, AUTO, tmp_path / name) is None
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    back = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert back("the old cat sees")["input_ids"] == tokenizer("the old cat sees")["input_ids"]
    assert back.chat_template == tokenizer.chat_template
    assert json.loads((tmp_path / "a" / "tokenizer.json").read_text())["truncation"] is None


def test_one_that_reads_back_differently_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("x")

    def other(*_: object) -> object:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["birds."])
        return tokenizer

    monkeypatch.setattr("sora_cli.adapter.companions.load_processor", other)
    said = present(save_processor(tiny_tokenizer(), AUTO, tmp_path))
    assert "once loaded it gives other inputs" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_images(tmp_path: Path) -> None:
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)
    assert save_processor(processor, "AutoImageProcessor", tmp_path) is None
    back = load_processor("AutoImageProcessor", str(tmp_path), {})
    assert gives_the_same(processor, back)
    assert auto_of(processor) == "AutoImageProcessor"
    assert not gives_the_same(processor, CLIPImageProcessor(size={"shortest_edge": 9}))


def test_it_goes_along(tmp_path: Path) -> None:
    layers = {"layer.0.query": LowRankFactors(torch.rand(3, 8), torch.rand(8, 3))}
    write_adapter(
        tmp_path / "a",
        Adapter.of(layers, {}, (), None, BaseReference("base", "base")),
        beside=lambda folder: tiny_tokenizer().save_pretrained(folder),
    )
    (tmp_path / "a" / "additional_chat_templates").mkdir()
    (tmp_path / "a" / "additional_chat_templates" / "rag.jinja").write_text("x")
    (tmp_path / "a" / "notes.txt").write_text("x")
    kept = {"tokenizer.json", "tokenizer_config.json", "additional_chat_templates/rag.jinja"}
    assert run(["prune", str(tmp_path / "a"), "-o", str(tmp_path / "p"), "--rank", "1"]) == 0
    assert run(["export", str(tmp_path / "a"), "-o", str(tmp_path / "e"), "--no-verify"]) == 0
    (tmp_path / "c").mkdir()
    copy_processor(tmp_path / "a", tmp_path / "c")
    for name in "pec":
        assert kept <= set(files_of(tmp_path / name))
        assert "notes.txt" not in files_of(tmp_path / name)
    assert run(["prune", str(tmp_path / "a"), "-o", str(tmp_path / "p"), "--force"]) == 0
