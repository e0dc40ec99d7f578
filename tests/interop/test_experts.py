"""Adapters on tensors of fused experts (PEFT's `target_parameters`), written and merged by PEFT.

Mixtral, Qwen3-MoE and OLMoE store experts one by one in checkpoints, GPT-OSS as one tensor whose
experts are (in, out).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from methods.keep import Keep
from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.combine import Combination, Mixing
from sora_cli.adapter.export import export_adapter
from sora_cli.adapter.facts import facts_of
from sora_cli.adapter.gguf_lora import export_gguf
from sora_cli.adapter.reading import open_adapter, read_adapter
from sora_cli.adapter.rounding import Rounding
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.merge.merge import merge_adapter
from tests.architectures import options_of
from tests.helpers_adapters import assert_same, fill_peft, logits

PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]
TARGETS: dict[str, dict[str, Any]] = {
    # its names before transformers 5, which PEFT turns into parameters of twice the rank
    "mixtral": {"target_modules": ["w1", "w2", "w3", "q_proj"]},
    "qwen3_moe": {"target_modules": ["q_proj"], "target_parameters": PARAMETERS,
                  "rank_pattern": {"gate_up_proj": 5}},
    "olmoe": {"target_modules": [], "target_parameters": ["experts.down_proj", "gate.weight"],
              "use_rslora": True},
    "gpt_oss": {"target_modules": [], "target_parameters": [*PARAMETERS, "gate_up_proj_bias"]},
}  # fmt: skip

SIZES = {"qwen3_moe": {"moe_intermediate_size": 24}}


@dataclass(frozen=True)
class Made:
    """A base model, an adapter, and the weights that PEFT merges."""

    base: Path
    adapter: Path
    merged: dict[str, Tensor]

    @property
    def update(self) -> dict[str, Tensor]:
        """What PEFT's merge has changed."""
        base = load(self.base).state_dict()
        return {name: self.merged[name] - base[name] for name in base}


def load(place: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(place).eval()


def make(kind: str, place: Path) -> Made:
    # no expert is square: the shapes alone tell inputs from outputs
    config = transformers.AutoConfig.for_model(kind, **{**options_of(kind), **SIZES.get(kind, {})})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(place / "base")
    config = LoraConfig(r=3, lora_alpha=7, task_type="CAUSAL_LM", **TARGETS[kind])
    with torch.no_grad():
        tuned = fill_peft(get_peft_model(load(place / "base"), config))
    tuned.save_pretrained(place / "adapter")
    return Made(place / "base", place / "adapter", tuned.merge_and_unload().state_dict())


@pytest.fixture(scope="module", params=TARGETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("qwen3_moe", tmp_path_factory.mktemp("qwen"))


def merge(adapter: Path, out: Path, base: Path) -> dict[str, Tensor]:
    with open_adapter(adapter) as file:
        merge_adapter(file, out, base=str(base))
    weights: dict[str, Tensor] = load(out).state_dict()
    return weights


def peft_logits(made: Made, adapter: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(load(made.base), adapter).eval())


def test_merged_and_exported_as_by_peft(made: Made, tmp_path: Path) -> None:
    assert any(update.any() for name, update in made.update.items() if "gate_up_proj" in name
               or "down_proj" in name)  # fmt: skip
    merged = merge(made.adapter, tmp_path / "out", made.base)
    assert merged.keys() == made.merged.keys()
    for name, expected in made.merged.items():
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=0)
    names = [set(load_file(p / "model.safetensors")) for p in (made.base, tmp_path / "out")]
    assert names[0] == names[1]
    expected = peft_logits(made, made.adapter)
    for layout in ("exact", "padded"):
        export_adapter(made.adapter, tmp_path / layout, layout=layout)
        assert_same(peft_logits(made, tmp_path / layout), expected)
    with torch.no_grad():
        model = load(made.base)
        apply_adapter(model, read_adapter(tmp_path / "exact"), fold=True)
        assert_same(logits(model), expected)
        with pytest.raises(SoraError, match="works only if it is merged"):
            apply_adapter(load(made.base), read_adapter(tmp_path / "exact"))


def test_one_line_for_all_experts(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """Norms are those of PEFT's whole update; servers are said to drop it."""
    with open_adapter(made.adapter) as file:
        facts = facts_of(file)
    changed = {n: float(u.norm()) for n, u in made.update.items() if float(u.norm())}
    norms = {path: s.norm for path, s in facts.spectra.items()}
    assert {n if n in changed else f"{n}.weight": v for n, v in norms.items()} == pytest.approx(
        changed, rel=1e-4
    )
    for name, number in facts.parts.facts["experts"].items():
        assert facts.ranks[name].stored == file.stored_ranks[f"{name}.0"] * number
    assert not run(["inspect", str(made.adapter), "--modules"])
    shown = capsys.readouterr().out
    assert shown.count("down_proj") <= 6
    assert "may drop them silently: sora merge first" in shown


def test_sides_as_before_peft_0_19(qwen: Made, tmp_path: Path) -> None:
    """PEFT 0.18.1's einsum "o r e, e r i -> e i o": inputs and outputs the other way round."""
    (tmp_path / "old").mkdir()
    config = json.loads((qwen.adapter / "adapter_config.json").read_text())
    config |= {"peft_version": "0.18.1"}
    (tmp_path / "old" / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(qwen.adapter / "adapter_model.safetensors")
    expected = {name: update for name, update in qwen.update.items() if "experts" not in name}
    for path in [key[: -len(".lora_A.weight")] for key in tensors if key.endswith("lora_A.weight")]:
        if "experts" in path:
            rank, name = (5, "gate_up_proj") if "base_layer" in path else (3, "down_proj")
            a, b = (torch.randn(tensors[f"{path}.lora_{x}.weight"].shape) * 0.2 for x in "AB")
            a, b = torch.randn(len(a), len(b)) * 0.2, torch.randn(a.shape[1], len(a)) * 0.2
            tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
            a, b = a.reshape(-1, rank, a.shape[1]), b.reshape(len(b), rank, -1)
            parameter = f"{path.removeprefix('base_model.model.').removesuffix('.base_layer')}"
            delta = torch.einsum("o r e, e r i -> e i o", b, a) * 7 / rank
            expected[f"{parameter}.{name}"] = delta
    save_file(tensors, tmp_path / "old" / "adapter_model.safetensors")
    merged = merge(tmp_path / "old", tmp_path / "out", qwen.base)
    for name, before in load(qwen.base).state_dict().items():
        torch.testing.assert_close(merged[name] - before, expected[name], rtol=0, atol=1e-5)
    with open_adapter(tmp_path / "old") as file:
        assert "written by PEFT 0.18.1" in file.source.notes[-1]


def test_cuts_and_sums(qwen: Made, tmp_path: Path) -> None:
    """Each expert by itself: its largest singular values; updates add up."""
    out = tmp_path / "cut"
    assert not run(["prune", str(qwen.adapter), "-o", str(out), "--rank", "2"])
    with open_adapter(out) as file, open_adapter(qwen.adapter) as whole:
        assert file.meta.ranks["model.layers.1.mlp.experts.gate_up_proj"] == 2 * 4
        assert file.meta.ranks_start["model.layers.1.mlp.experts.gate_up_proj"] == 5 * 4
        for path in file.paths:
            small = whole.layers[path]
            u, s, vt = torch.linalg.svd(small.B @ small.A)
            best = u[:, :2] * s[:2] @ vt[:2]
            cut = file.layers[path]
            torch.testing.assert_close(cut.B @ cut.A, best, rtol=0, atol=1e-5)
        done = Combination([whole, file], Mixing((1.0, 0.5))).write(
            tmp_path / "sum", Keep(), dtype="float32", force=False, progress=lambda _: None
        )
        assert done.exact
        assert "model.layers.1.mlp.experts.down_proj" in done.losses
    merged = [merge(adapter, tmp_path / f"{adapter.name}-merged", qwen.base)
              for adapter in (qwen.adapter, out, tmp_path / "sum")]  # fmt: skip
    for name, base in load(qwen.base).state_dict().items():
        one, half, both = (weights[name] - base for weights in merged)
        torch.testing.assert_close(both, one + half / 2, rtol=0, atol=1e-5)
    assert_same(peft_logits(qwen, out), logits(load(tmp_path / "cut-merged")))


def test_refused_with_the_reason(qwen: Made, tmp_path: Path) -> None:
    with open_adapter(qwen.adapter) as file:
        with pytest.raises(SoraError, match="all parts of a tensor at one rank"):
            export_adapter(qwen.adapter, tmp_path / "out", keep=Keep(energy=0.9))
        with pytest.raises(SoraError, match="only factors of layers can be rounded"):
            Rounding.of(file, 4, head=False)
        with pytest.raises(SoraError, match=r"exact in llama.cpp, not .*gate_up_proj, "):
            export_gguf(qwen.adapter, tmp_path / "x.gguf")
    for options, message in (
        ({"target_parameters": ["experts.gate_up_proj"]}, "but the file holds 2 of them"),
        ({"target_parameters": ["experts.x", "experts.y"]}, "whose order is not known"),
        ({"rank_pattern": {"gate_up_proj": 7}}, "are not pairs of rank 7"),
        ({"target_parameters": PARAMETERS, "use_dora": True}, "goes with plain LoRA only"),
    ):
        config = json.loads((qwen.adapter / "adapter_config.json").read_text()) | options
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "adapter_config.json").write_text(json.dumps(config))
        weights = (qwen.adapter / "adapter_model.safetensors").read_bytes()
        (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(weights)
        with pytest.raises(SoraError, match=message), open_adapter(tmp_path / "bad"):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_a_base_without_some_of_its_experts_is_refused(qwen: Made, tmp_path: Path) -> None:
    base = tmp_path / "base"
    load(qwen.base).save_pretrained(base)
    file = base / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SoraError, match="is stored in another form"):
        merge(qwen.adapter, tmp_path / "out", base)
