"""The Modelfile for Ollama beside an exported adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.app import run
from tests.golden import told
from tests.helpers_chat import chat_tokenizer, write_chat_base

TEMPLATE = '''TEMPLATE """{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}\
<|im_start|> system \
{{ .Content }}{{ else if eq .Role "assistant" }} <|im_end|> <|im_start|> assistant {{ .Content }}\
{{ else if eq $i 0 }}<|im_start|> user {{ .Content }}{{ else if and $.System (eq $i 1) }} \
<|im_end|> <|im_start|> user {{ .Content }}{{ else }} <|im_end|> <|im_start|> user {{ .Content }}\
{{ end }}{{ end }} <|im_end|> <|im_start|> assistant """'''
LINES = [
    "# Written by sora: ollama create NAME -f out.Modelfile",
    "FROM ./BASE.gguf",
    "ADAPTER ./out.gguf",
    "PARAMETER temperature 0.7",
    "PARAMETER top_p 0.95",
    "PARAMETER top_k 50",
    "PARAMETER repeat_penalty 1",
    'PARAMETER stop "<|im_end|>"',
]


def exported(folder: Path, *words: str, code: int = 0, **task: Any) -> str:
    """The Modelfile of a tiny chat model's adapter; "": there is none.

    Args:
        task: options of the run's task.
    """
    base = folder / "base"
    if not base.exists():
        write_chat_base(base)
    shape = LowRankFactors(torch.ones(2, 64), torch.ones(32, 2))
    recipe = {"task": {"name": "causal-lm", **task}}
    meta = AdapterMeta(task="causal-lm", input_columns=("instruction",), row_recipe=recipe)
    adapter = Adapter.of({"model.layers.0.mlp.down_proj": shape}, {}, (), "CAUSAL_LM",
                      BaseReference(str(base), str(base)), meta=meta)  # fmt: skip
    write_adapter(folder / "adapter", adapter, force=True)
    out = folder / "out.gguf"
    assert (
        run(["export", str(folder / "adapter"), "-o", str(out), "--format", "gguf", *words]) == code
    )
    file = out.with_suffix(".Modelfile")
    return file.read_text(encoding="utf-8") if file.exists() else ""


def test_settings_and_template_are_those_of_sora_chat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported(tmp_path) == "\n".join([*LINES, TEMPLATE, ""])
    shown = capsys.readouterr()
    told(shown.out)
    told(shown.err)
    assert exported(tmp_path, "--force") == "\n".join([*LINES, TEMPLATE, ""])
    (tmp_path / "out.Modelfile").write_text("FROM mine", encoding="utf-8")
    assert exported(tmp_path, "--force", code=2) == "FROM mine"
    told(capsys.readouterr().err)


def test_the_runs_system_message_and_the_models_own_settings(tmp_path: Path) -> None:
    base = write_chat_base(tmp_path / "base")
    settings = {"eos_token_id": [3, 2], "repetition_penalty": 1.25, "temperature": 0.1}
    (base / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    told(exported(tmp_path, system='Answer in "one"\nword.'))


def test_somebodys_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_chat_base(tmp_path / "base")
    settings = '{"repetition_penalty": "much"}'
    (base / "generation_config.json").write_text(settings, encoding="utf-8")
    assert exported(tmp_path) == ""
    told(capsys.readouterr().err)


def test_a_line_that_ollama_would_read_otherwise_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_chat_base(tmp_path / "base")
    chat_tokenizer(template="{{ messages[-1]['content'] }}").save_pretrained(base)
    assert exported(tmp_path, system='"""') == "\n".join([*LINES, ""])
    told(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["x\nFROM evil", "x\u2028y"])
def test_a_name_with_a_line_break_gets_no_modelfile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    exported(tmp_path)
    out = tmp_path / f"{name}.gguf"
    assert run(["export", str(tmp_path / "adapter"), "-o", str(out), "--format", "gguf"]) == 0
    assert list(tmp_path.glob("x*")) == [out]
    told(capsys.readouterr().err)


def test_headings_take_the_place_of_a_chat_template(tmp_path: Path) -> None:
    told(exported(tmp_path, prompt="plain"))


def test_without_a_tokenizer_the_adapter_alone_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_chat_base(tmp_path / "base")
    for file in base.glob("tokenizer*"):
        file.unlink()
    assert exported(tmp_path) == ""
    assert (tmp_path / "out.gguf").exists()
    shown = capsys.readouterr()
    told(shown.out)
    told(shown.err)
