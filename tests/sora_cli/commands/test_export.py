"""`sora export`: what is written, what is said, and that nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS


def _write(directory: Path, ranks: list[int], *, head: bool = False, **meta: Any) -> Path:
    g = torch.Generator().manual_seed(0)
    layers = {
        f"layer.{i}.query": LowRankFactors(
            torch.randn(rank, 6, generator=g), torch.randn(5, rank, generator=g)
        )
        for i, rank in enumerate(ranks)
    }
    write_adapter(
        directory,
        Adapter.of(
            layers=layers,
            head={"score.weight": torch.ones(2, 5)} if head else {},
            head_modules=("score",) if head else (),
            task_type="SEQ_CLS" if head else "CAUSAL_LM",
            base=BaseReference("hub/name", "/local/name", "main", "x:1"),
            meta=AdapterMeta(method="some method", **meta),
        ),
    )
    return directory


def _export(directory: Path, *options: str) -> Path:
    out = directory.parent / "out"
    assert run(["export", str(directory), "-o", str(out), *options]) == 0
    return out


@pytest.mark.parametrize("layout", ["exact", "padded"])
def test_everything_is_kept(tmp_path: Path, layout: str) -> None:
    source = _write(tmp_path / "a", [1, 3, 2], head=True, labels=("a", "b"), max_length=64)
    before = read_adapter(source)
    after = read_adapter(_export(source, "--layout", layout))
    for path, factors in before.layers.items():
        assert torch.equal(after.layers[path].dense(), factors.dense())
    assert torch.equal(after.head["score.weight"], before.head["score.weight"])
    assert (after.base, after.task_type) == (before.base, before.task_type)
    assert after.ranks() == before.ranks()
    assert after.ranks_start() == before.ranks_start()
    assert after.meta.labels == ("a", "b")
    (entry,) = after.meta.lineage
    assert entry == {"command": "export", "from": "LoRA", "layout": layout, "dtype": "float32"}


def test_a_run_directory_and_a_second_export(tmp_path: Path) -> None:
    _write(tmp_path / "run" / "adapter", [2, 2])
    out = _export(tmp_path / "run", "--dtype", "bfloat16")
    again = tmp_path / "again"
    assert run(["export", str(out), "-o", str(again), "--layout", "padded"]) == 0
    lineage = read_adapter(again).meta.lineage
    assert [entry["dtype"] for entry in lineage] == ["bfloat16", "bfloat16"]
    assert read_adapter(again).ranks() == {"layer.0.query": 2, "layer.1.query": 2}


def _verdicts(text: str) -> dict[str, str]:
    lines = (line.split(maxsplit=2) for line in text.splitlines() if line.startswith("  "))
    return {name.rstrip(":"): verdict for name, verdict, _ in lines}


@pytest.mark.parametrize(
    ("ranks", "head", "layout", "loads"),
    [
        ([2, 2], False, "exact", {"PEFT", "transformers", "vLLM", "llama.cpp"}),
        ([1, 9], False, "exact", {"PEFT", "transformers", "vLLM"}),
        ([1, 9], False, "padded", {"PEFT", "transformers", "vLLM", "llama.cpp"}),
        ([1, 600], False, "padded", {"PEFT", "transformers", "llama.cpp"}),
        ([1, 9], True, "padded", {"PEFT", "transformers"}),
    ],
)
def test_who_can_load_it(
    tmp_path: Path,
    ranks: list[int],
    head: bool,
    layout: str,
    loads: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _export(_write(tmp_path / "a", ranks, head=head), "--layout", layout)
    shown = capsys.readouterr()
    verdicts = _verdicts(shown.out)
    assert set(verdicts) >= {"PEFT", "transformers", "vLLM", "llama.cpp"}
    assert ("Ollama" in verdicts) == (not head)  # it serves language models
    assert {name for name, verdict in verdicts.items() if verdict == "yes"} == loads
    if ranks == [1, 9] and not head:
        assert "--max-lora-rank 16" in shown.out
    assert "wrote " in shown.err


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _export(_write(tmp_path / "a", [1, 3]), "--no-verify", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layout"], facts["modules"], facts["rank"]) == ("exact", 2, 3)
    assert {"name", "loads", "advice", "step"} == set(facts["consumers"][0])


TORCHTUNE = {"target_modules": ["q_proj"], "base_model_name_or_path": "org/model"}
"""What its Hugging Face checkpointer writes."""
UNSLOTH = {
    "target_modules": (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
        r"(?:q_proj|k_proj|v_proj|o_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
        r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
        r"(?:(?:q_proj|k_proj|v_proj|o_proj)))"
    ),
    "base_model_name_or_path": "unsloth/some-model-bnb-4bit",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
    "corda_config": None,
    "ensure_weight_tying": False,
}
"""With the expression of its `get_peft_regex`, and the keys that it adds."""


@pytest.mark.parametrize("config", [TORCHTUNE, UNSLOTH], ids=["torchtune", "unsloth"])
def test_pefts_files_of_other_programs(tmp_path: Path, config: dict[str, Any]) -> None:
    folder, layer = tmp_path / "a", "model.layers.0.self_attn.q_proj"
    folder.mkdir()
    a, b = torch.randn(2, 6), torch.randn(8, 2)
    start = f"base_model.model.{layer}.lora"
    save_file({f"{start}_A.weight": a, f"{start}_B.weight": b}, folder / ADAPTER_WEIGHTS)
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(raw))
    layers = read_adapter(_export(folder)).layers
    assert list(layers) == [layer]
    torch.testing.assert_close(layers[layer].dense().float(), 2 * (b @ a))
