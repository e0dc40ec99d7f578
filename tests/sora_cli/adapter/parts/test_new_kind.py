"""A new kind of part is one file (`ia3`) and one line: commands use it, and none knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.parts import kinds
from sora_cli.adapter.reading import open_adapter, read_adapter
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.merge.merge import merge_adapter
from tests.helpers_adapters import assert_same, logits
from tests.helpers_errors import error_of
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.sora_cli.adapter.parts.ia3 import Vector

MODELS = {
    "bert": (tiny_bert, ["key", "output.dense"], ["output.dense"]),  # biases
    "gpt2": (tiny_gpt2, ["c_attn", "c_proj"], ["c_proj"]),  # Conv1D
    "llama": (tiny_llama, ["k_proj", "down_proj"], ["down_proj"]),
}


@pytest.fixture(params=MODELS)
def written(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, torch.Tensor]:
    """An adapter of PEFT's with random vectors, and its logits; the kind is registered."""
    monkeypatch.setattr(kinds, "KINDS", (Vector, *kinds.KINDS))  # the one line
    make, targets, feedforward = MODELS[request.param]
    base = make()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    task = "SEQ_CLS" if request.param == "bert" else "CAUSAL_LM"
    config = peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type=task)
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.copy_(1 + torch.randn(parameter.shape, generator=generator) / 4)
    model.eval().save_pretrained(tmp_path / "a")
    return tmp_path / "a", logits(model)


Written = tuple[Path, torch.Tensor]


def _loaded(place: Path, causal: bool) -> torch.nn.Module:
    kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model: torch.nn.Module = kind.from_pretrained(place).eval()
    return model


def test_it_is_inspected(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    place, _ = written
    assert run(["inspect", str(place), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    with open_adapter(place) as adapter:
        assert facts["vectors"] == sum(isinstance(part, Vector) for part in adapter.parts) > 0
        assert facts["parameters"]["adapter"] == adapter.parameters > 0
    assert (facts["kind"], facts["ranks"], facts["cuts"]) == ("IA3", {}, [])
    takes = {program["name"] for program in facts["consumers"] if program["loads"]}
    assert takes == {"PEFT", "transformers"} & takes
    assert run(["inspect", str(place), "--modules"]) == 0
    assert f"{facts['vectors']} layers multiplied by vectors" in capsys.readouterr().out


def test_it_is_applied_as_peft_does(written: Written) -> None:
    place, expected = written
    causal = read_adapter(place).task_type == "CAUSAL_LM"
    model = _loaded(place.parent / "base", causal)
    with pytest.raises(SoraError, match="works only if it is merged"):
        apply_adapter(model, read_adapter(place))
    apply_adapter(model, read_adapter(place), fold=True)
    assert_same(logits(model), expected)


def test_it_is_merged_as_peft_does(written: Written, tmp_path: Path) -> None:
    place, expected = written
    assert run(["merge", str(place), "-o", str(tmp_path / "out")]) == 0
    causal = read_adapter(place).task_type == "CAUSAL_LM"
    assert_same(logits(_loaded(tmp_path / "out", causal)), expected)
    merge_adapter(read_adapter(place), tmp_path / "held")  # from memory: the same files
    names = ("config.json", "model.safetensors")
    assert all(
        (tmp_path / "held" / n).read_bytes() == (tmp_path / "out" / n).read_bytes() for n in names
    )


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "-o", "OUT", "--rank", "1"),
        ("prune", "-o", "OUT", "--bits", "4"),
        ("export", "-o", "OUT"),
        ("export", "-o", "OUT.gguf", "--format", "gguf"),
        ("combine", "AGAIN", "-o", "OUT"),
    ],
    ids=" ".join,
)
def test_it_is_refused_elsewhere_by_its_own_words(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    command, *rest = words
    places = {"OUT": str(tmp_path / "out"), "OUT.gguf": str(tmp_path / "o.gguf")}
    places["AGAIN"] = str(written[0])
    said = error_of(capsys, command, str(written[0]), *(places.get(word, word) for word in rest))
    assert "this is an (IA)³ adapter: it multiplies '" in said[0]
    assert "sora merge" in said[-1]
    assert not (tmp_path / "out").exists()
