"""Servers' rules, on directories that we write: which are taken, and why others are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.consumers import Consumer, consumers_of
from sora_cli.adapter.directory import Adapter, write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.server_rules import SERVERS
from sora_cli.app import run

KINDS = "self_attn.q_proj", "mlp.down_proj"
EVEN = {f"model.layers.{i}.{kind}": 4 for i in (0, 1) for kind in KINDS}
UNEVEN = {path: 2 + i % 3 for i, path in enumerate(EVEN)}
HOLE = {path: rank for path, rank in EVEN.items() if path != "model.layers.1.self_attn.q_proj"}


def found(
    folder: Path, ranks: dict[str, int], *, layout: str = "exact", layers: int = 2
) -> dict[str, Consumer]:
    (folder / "base").mkdir()
    config = json.dumps({"model_type": "llama", "num_hidden_layers": layers})
    (folder / "base" / "config.json").write_text(config, encoding="utf-8")
    factors = {p: LowRankFactors(torch.ones(r, 6), torch.ones(5, r)) for p, r in ranks.items()}
    base = BaseReference(str(folder / "base"), str(folder / "base"))
    adapter = Adapter(factors, {}, (), "CAUSAL_LM", base)
    write_adapter(folder / "a", adapter, layout=layout)
    with open_adapter(folder / "a") as file:
        return {verdict.name: verdict for verdict in consumers_of(file)}


@pytest.mark.parametrize(
    ("ranks", "layout", "loads"),
    [
        (EVEN, "exact", {"SGLang", "TensorRT-LLM", "LoRAX", "TGI"}),
        (UNEVEN, "exact", set()),
        (UNEVEN, "padded", {"SGLang", "TensorRT-LLM", "LoRAX", "TGI"}),
        (HOLE, "exact", {"SGLang", "TensorRT-LLM"}),
        ({**EVEN, "model.layers.0.mixer.in_proj": 4}, "exact", set()),
    ],
)
def test_who_takes_what_we_write(
    tmp_path: Path, ranks: dict[str, int], layout: str, loads: set[str]
) -> None:
    verdicts = found(tmp_path, ranks, layout=layout)
    names = {rules.name for rules in SERVERS}
    assert {name for name in names if verdicts[name].loads} == loads


def test_reasons(tmp_path: Path) -> None:
    verdicts = found(tmp_path, UNEVEN)
    assert "needs the rank r of its configuration in all modules: " in verdicts["SGLang"].advice
    assert "applies alpha / the rank of each tensor: " in verdicts["TensorRT-LLM"].advice
    assert verdicts["TGI"].advice.endswith("-o OUT --layout padded first")
    assert "first, then ollama create NAME -f adapter.Modelfile" in verdicts["Ollama"].advice


def test_a_layer_without_a_pair_is_told_by_the_base_model(tmp_path: Path) -> None:
    advice = found(tmp_path, EVEN, layers=3)["LoRAX"].advice
    assert advice == "ignores all self_attn.q_proj, since layer 2 has none: sora merge first"


def test_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = found(tmp_path, EVEN)
    where, base = tmp_path / "a", tmp_path / "base"
    assert verdicts["SGLang"].advice == (
        f"python -m sglang.launch_server --model-path {base} --enable-lora --max-lora-rank 4 "
        f"--lora-paths adapter={where}"
    )
    assert verdicts["TGI"].advice == (
        f"LORA_ADAPTERS=adapter={where} text-generation-launcher --model-id {base}"
    )
    assert run(["inspect", str(where)]) == 0
    shown = capsys.readouterr().out
    assert all(f"{rules.name}: " in shown for rules in SERVERS)
