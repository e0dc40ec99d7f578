"""An adapter as a GGUF file: what llama.cpp would add to each weight, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.gguf_lora import export_gguf
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.saving import base_reference
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.gguf.kinds import KINDS, has_tied_output
from tests.helpers_disk import files_of_at_most
from tests.helpers_errors import refused

HIDDEN, HEADS = 16, 2
CONFIG = {"num_attention_heads": HEADS, "hidden_size": HIDDEN, "tie_word_embeddings": True}
LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
LAYERS = {
    "llama": [f"model.layers.{i}.{name}" for i in (0, 11) for name in LLAMA],
    "qwen3": [f"model.layers.0.{name}" for name in LLAMA],
    "glm4": ["model.layers.0.mlp.gate_up_proj", "model.layers.0.mlp.down_proj"],
    "gpt_oss": [f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"],
    "lfm2": ["model.layers.0.conv.in_proj", "model.layers.0.conv.out_proj",
             "model.layers.1.self_attn.out_proj", "model.layers.1.feed_forward.w2"],
    "gpt2": [f"transformer.h.0.{name}" for name in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")],
    "gpt_neox": [f"gpt_neox.layers.1.attention.{name}" for name in ("query_key_value", "dense")],
    "bloom": [f"transformer.h.0.self_attention.{name}" for name in ("query_key_value", "dense")],
    "t5": ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.1.EncDecAttention.v"],
    "bert": ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.output.dense"],
}  # fmt: skip
NAMES = {
    "model.layers.0.mlp.gate_up_proj": "blk.0.ffn_up",
    "model.layers.0.conv.in_proj": "blk.0.shortconv.in_proj",
    "model.layers.1.feed_forward.w2": "blk.1.ffn_down",
    "model.layers.11.self_attn.k_proj": "blk.11.attn_k", "transformer.h.0.mlp.c_fc": "blk.0.ffn_up",
    "transformer.h.0.attn.c_attn": "blk.0.attn_qkv",
    "gpt_neox.layers.1.attention.query_key_value": "blk.1.attn_qkv",
    "transformer.h.0.self_attention.dense": "blk.0.attn_output",
    "decoder.block.1.layer.1.EncDecAttention.v": "dec.blk.1.cross_attn_v",
    "bert.encoder.layer.0.output.dense": "blk.0.ffn_down",
}  # fmt: skip


def written(folder: Path, paths: list[str], *, base: str | None = None, **options: Any) -> Path:
    """An adapter with ranks 1, 2, 3, 1, ...; a fused layer has three outputs for each input."""
    g = torch.Generator().manual_seed(0)
    fused = ("query_key_value", "c_attn")
    layers = {
        path: LowRankFactors(
            torch.randn(1 + i % 3, HIDDEN, generator=g),
            torch.randn((3 if path.endswith(fused) else 1) * HIDDEN, 1 + i % 3, generator=g),
        )
        for i, path in enumerate(paths)
    }
    reference = BaseReference(base or str(folder / "base"), base or str(folder / "base"))
    adapter = Adapter.of(layers, {}, (), "CAUSAL_LM", reference, **options)
    write_adapter(folder / "adapter", adapter)
    return folder / "adapter"


def based(folder: Path, model_type: str) -> None:
    (folder / "base").mkdir()
    config = json.dumps({**CONFIG, "model_type": model_type})
    (folder / "base" / "config.json").write_text(config, encoding="utf-8")


def added(file: Path) -> dict[str, Tensor]:
    """What llama.cpp adds to each weight: (out, in)."""
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    tensors = {t.name: torch.tensor(np.array(t.data)).float() for t in reader.tensors}
    names = {name.rpartition(".lora_")[0] for name in tensors}
    assert len(tensors) == 2 * len(names)
    return {
        name: alpha / tensors[f"{name}.lora_b"].shape[1]
        * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        for name in names
    }  # fmt: skip


def as_converted(model_type: str, path: str, weight: Tensor) -> Tensor:
    """A weight by the converter's own expressions (conversion/llama.py, bloom.py, gptneox.py)."""
    if model_type == "llama" and path.endswith(("q_proj", "k_proj")):
        halves = weight.reshape(HEADS, 2, weight.shape[0] // HEADS // 2, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape)
    if path.endswith("query_key_value"):
        heads = weight.reshape((HEADS, 3, HIDDEN // HEADS, HIDDEN))
        return torch.cat([heads[:, i].reshape((-1, HIDDEN)) for i in range(3)], dim=0)
    return weight


@pytest.mark.versions
@pytest.mark.parametrize("model_type", LAYERS)
def test_llama_cpp_adds_what_peft_does(tmp_path: Path, model_type: str) -> None:
    based(tmp_path, model_type)
    source = written(tmp_path, LAYERS[model_type], fan_in_fan_out=model_type == "gpt2")
    out = tmp_path / "out.gguf"
    assert run(["export", str(source), "-o", str(out), "--format", "gguf"]) == 0
    reader = gguf.GGUFReader(out)
    assert reader.fields["general.architecture"].contents() == KINDS[model_type].architecture
    found, factors = added(out), read_adapter(source).layers
    assert len(found) == len(factors)
    for path, stored in factors.items():
        expected = as_converted(model_type, path, stored.dense().float())
        near = [n for n, w in found.items() if w.shape == expected.shape
                and torch.allclose(w, expected, atol=1e-5)]  # fmt: skip
        assert len(near) == 1, path
        assert f"{NAMES.get(path, near[0].removesuffix('.weight'))}.weight" == near[0]


def test_half_precision(tmp_path: Path) -> None:
    """The numbers are halves, and a small B, as short training leaves it, is not lost."""
    based(tmp_path, "llama")
    source = written(tmp_path, LAYERS["llama"])
    export_gguf(source, tmp_path / "a.gguf", type="f16")
    types = {t.tensor_type for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert types == {gguf.GGMLQuantizationType.F16}
    for path, factors in read_adapter(source).layers.items():
        expected = as_converted("llama", path, factors.dense().float())
        gaps = [(w - expected).abs().max() for w in added(tmp_path / "a.gguf").values()]
        assert min(gaps) < 2e-3 * expected.abs().max()


def test_disk_that_fills_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it ends, within the last tensor too: one clear error, and nothing is left."""
    based(tmp_path, "llama")
    source, out = written(tmp_path, LAYERS["qwen3"]), tmp_path / "out.gguf"
    export_gguf(source, out)
    whole = out.stat().st_size
    out.unlink()
    for limit in (0, 100, whole // 2, whole - 40, whole - 1):
        with files_of_at_most(limit):
            refused(capsys, "export", source, "-o", out, "--format", "gguf")
        assert {place.name for place in tmp_path.iterdir()} == {"base", "adapter"}


@pytest.mark.parametrize(
    ("model_type", "path", "words"),
    [
        ("deepseek_v3", "model.layers.0.self_attn.kv_b_proj", "deepseek_v3 models are not known"),
        ("llama", "model.layers.0.block.odd_proj", "no place for 'model.layers.0.block.odd_proj'"),
        ("llama", "lm_head", "tied to the embedding"),
        ("llama", "model.embed_tokens", "an embedding"),
        ("distilbert", "pre_classifier", "no place for 'pre_classifier'"),
        ("bert", "pooler.dense", "no place for 'pooler.dense'"),
    ],
)
def test_refused(tmp_path: Path, model_type: str, path: str, words: str) -> None:
    based(tmp_path, model_type)
    source = written(tmp_path, [path])
    with pytest.raises(SoraError, match=words):
        export_gguf(source, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[]", "is not a configuration"),
        ('{"model_type": "llama"}', "does not say the number of attention heads"),
        ('{"model_type": "llama", "num_attention_heads": 64, "hidden_size": 32}', "heads of 0"),
    ],
)
def test_a_configuration_that_does_not_say_enough(tmp_path: Path, config: str, words: str) -> None:
    based(tmp_path, "llama")
    (tmp_path / "base" / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(SoraError, match=words):
        export_gguf(written(tmp_path, LAYERS["llama"]), tmp_path / "out.gguf")


def tied_by_default(config: Any) -> bool:
    """The class says it, or what it makes does; transformers 5.4 cannot make all of them."""
    said = getattr(config, "tie_word_embeddings", None)
    return bool(config().tie_word_embeddings if said is None else said)


@pytest.mark.versions
def test_an_output_that_is_tied_by_default(tmp_path: Path) -> None:
    """Older configurations do not say what holds anyway: gpt2's and gemma's, for two."""
    tied = {kind: tied_by_default(CONFIG_MAPPING[kind]) for kind in KINDS}
    encoders = [kind for kind in KINDS if KINDS[kind].architecture == "bert"]  # have no output
    found = {kind: has_tied_output({"model_type": kind}) for kind in KINDS}
    assert found == tied | dict.fromkeys(encoders, False)
    assert not has_tied_output({"model_type": "gpt2", "tie_word_embeddings": False})
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(SoraError, match="tied to the embedding"):
        export_gguf(written(tmp_path, ["lm_head"]), tmp_path / "out.gguf")


def test_a_base_that_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for, and may be given."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    source = written(tmp_path, LAYERS["llama"], base="some/model")
    out = tmp_path / "out.gguf"
    words = ["export", str(source), "-o", str(out), "--format", "gguf"]
    refused(capsys, *words)
    based(tmp_path, "llama")
    assert run([*words, "--base", str(tmp_path / "base")]) == 0
    assert "ranks 1-3: f32, alpha 3, rows of 4 in llama.cpp's order" in capsys.readouterr().out


def test_a_base_with_other_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused without --force; a checkpoint and a GGUF file of it cannot be compared."""
    based(tmp_path, "llama")
    base, out, path = str(tmp_path / "base"), tmp_path / "out.gguf", LAYERS["llama"][0]
    weights = tmp_path / "base" / "model.safetensors"
    save_file({"w": torch.zeros(2)}, weights)
    layers = {path: LowRankFactors(torch.ones(1, HIDDEN), torch.ones(HIDDEN, 1))}
    adapter = Adapter.of(layers, {}, (), "CAUSAL_LM", base_reference(base, base, None))
    write_adapter(tmp_path / "a", adapter)
    words = ["export", str(tmp_path / "a"), "-o", str(out), "--format", "gguf"]
    assert run([*words, "--base", base]) == 0
    out.unlink()
    save_file({"w": torch.ones(2)}, weights)
    for more in ([], ["--base", base]):
        refused(capsys, *words, *more)
        assert not out.exists()
    assert run([*words, "--base", base, "--force"]) == 0
    out.unlink()
    model_file(tmp_path / "base.gguf", {"blk.0.attn_q.weight": (HIDDEN, HIDDEN)})
    assert run([*words, "--base", str(tmp_path / "base.gguf")]) == 0


def model_file(file: Path, shapes: dict[str, tuple[int, int]]) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_embedding_length(HIDDEN)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_base_model_in_a_gguf_file(tmp_path: Path) -> None:
    """Its weights are looked up, and have to fit."""
    file, out, path = tmp_path / "base.gguf", tmp_path / "out.gguf", LAYERS["llama"][0]
    source = written(tmp_path, [path], base=str(file))
    model_file(file, {"blk.0.attn_q.weight": (HIDDEN, HIDDEN)})
    notes = export_gguf(source, out).notes
    assert notes == (
        f"{file} may not be the base model of the adapter: its fingerprint is not recorded",
    )
    (weight,) = added(out).values()
    dense = read_adapter(source).layers[path].dense().float()
    assert torch.allclose(weight, as_converted("llama", path, dense), atol=1e-6)
    model_file(file, {"blk.0.attn_q.weight": (2 * HIDDEN, HIDDEN)})
    with pytest.raises(SoraError, match=r"is \(16, 32\)"):
        export_gguf(source, out)
    model_file(file, {"blk.0.attn_v.weight": (HIDDEN, HIDDEN)})
    with pytest.raises(SoraError, match=r"base\.gguf has no blk\.0\.attn_q\.weight"):
        export_gguf(source, out)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--layout", "padded"], "out.gguf"),
        (["--dtype", "float16"], "out.gguf"),
        (["--type", "q8_0"], "out.gguf"),
        ([], "out"),
    ],
)
def test_options(
    tmp_path: Path, options: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    based(tmp_path, "llama")
    source = written(tmp_path, LAYERS["llama"])
    out = str(tmp_path / name)
    refused(capsys, "export", source, "-o", out, "--format", "gguf", *options)


def test_a_file_is_replaced_with_force_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    based(tmp_path, "llama")
    source, out = written(tmp_path, LAYERS["llama"]), tmp_path / "out.gguf"
    words = ["export", str(source), "-o", str(out), "--format", "gguf"]
    out.write_text("a text", encoding="utf-8")
    assert run(words) == 2
    refused(capsys, *words, "--force")
    out.unlink()
    assert run(words) == 0
    assert run([*words, "--force", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert facts["alpha"] == 3
    refused(capsys, "export", source, "-o", tmp_path / "d", "--type", "f16")
