"""`sora predict` with adapters that PEFT has written: task, classes and base from their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

from sora_cli.app import run
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, tiny_tokenizer, write_rows


@pytest.mark.versions
def test_the_answers_are_those_of_peft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    names = {0: "no", 1: "perhaps", 2: "yes"}
    tiny_bert(num_labels=3, id2label=names).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    loaded = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=32, target_modules=["query"])
    tuned = get_peft_model(loaded, config).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "classifier" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g))
    tuned.save_pretrained(tmp_path / "peft")
    rows = [{k: v for k, v in row.items() if k != "label"} for row in pair_rows(8)]
    file, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    assert run(["predict", str(tmp_path / "peft"), file, "-o", str(out), "--probabilities"]) == 0
    assert "rows are cut at 128 tokens" in capsys.readouterr().err  # it does not say another length
    given = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row["prediction"] for row in given}) > 1
    for row, own in zip(given, rows, strict=True):
        pair = tiny_tokenizer()(*own.values(), return_tensors="pt")
        shares = tuned(**pair).logits[0].softmax(dim=-1).tolist()
        assert [row[f"probability_{name}"] for name in names.values()] == pytest.approx(
            shares, abs=1e-5
        )
        assert row["prediction"] == names[shares.index(max(shares))]
    moved = tmp_path / "elsewhere"
    base.rename(moved)
    words = ["predict", str(tmp_path / "peft"), file, "-o", str(tmp_path / "again.jsonl")]
    assert run(words) == 2
    assert run([*words, "--base", str(moved)]) == 0
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in again] == [row["prediction"] for row in given]
