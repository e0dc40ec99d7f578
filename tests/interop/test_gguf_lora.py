"""The padded layout, turned into llama.cpp's GGUF by its converter's rules, and read back.

The rules are those of convert_lora_to_gguf.py: the name of each layer from the tables of the
package `gguf`, alpha from the configuration, nothing else of it; and for models like Llama the rows
of the query and key weights in another order, as in `LlamaModel.permute`. What llama.cpp then adds
to a weight is `alpha / rank of lora_a * lora_b @ lora_a`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from methods import inject, registry
from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.peft.layout import PREFIX
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.saving import save_adapter
from sora_cli.app import run
from sora_cli.gguf.kinds import gguf_names
from sora_cli.model.files import ADAPTER_WEIGHTS
from tests import smollm2
from tests.helpers_adapters import R_MAX, randomise
from tests.helpers_models import LAYERS, tiny_gpt2, tiny_llama, tiny_t5
from tests.present import present

HEADS, KEY_HEADS = 2, 1


def permuted(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head: first halves and second halves take turns."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def in_order(path: str, rows: Tensor) -> Tensor:
    heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(path.split(".")[-1])
    return rows if heads is None else permuted(rows, heads)


def convert(directory: Path, out: Path) -> None:
    """What the converter makes of an adapter directory and a Llama base."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config["lora_alpha"]))
    for key, tensor in load_file(directory / ADAPTER_WEIGHTS).items():
        path, _, half = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        assert half in ("lora_A", "lora_B"), key
        name = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
        assert name is not None, path
        stored = tensor if half == "lora_A" else in_order(path, tensor)
        writer.add_tensor(f"{name}.{half.lower()}", np.ascontiguousarray(stored.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def made(folder: Path, *, layout: str) -> tuple[Path, dict[str, LowRankFactors]]:
    """An adapter of a tied Llama with mixed ranks, exported; its factors."""
    base, adapter, out = folder / "base", folder / "adapter", folder / layout
    model = tiny_llama(tied=True)
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (HEADS, KEY_HEADS)
    model.save_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    method = registry.create("sora", r_max=R_MAX)
    layers = inject.inject(model, method, generator=generator)
    randomise(model, layers, (), ranks="mixed", generator=generator)
    save_adapter(model, method, adapter, base_model=str(base))
    words = ["--layout", layout, "--no-verify"]
    assert run(["export", str(adapter), "-o", str(out), *words]) == 0
    return out, dict(read_adapter(adapter).layers)


@pytest.mark.versions
@pytest.mark.parametrize("layout", ["padded", "exact"])
def test_what_llama_cpp_adds(tmp_path: Path, layout: str) -> None:
    """The padded layout is right, and the exact one is not: ranks are mixed."""
    directory, factors = made(tmp_path, layout=layout)
    assert len({f.rank for f in factors.values()}) > 1
    convert(directory, tmp_path / "lora.gguf")
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].parts[-1][0])
    tensors = {t.name: torch.tensor(t.data) for t in reader.tensors}
    names = present(gguf_names("llama", factors))
    assert tensors.keys() == {f"{n}.weight.lora_{x}" for n in names.values() for x in "ab"}
    worst = 0.0
    for path, stored in factors.items():
        a, b = (tensors[f"{names[path]}.weight.lora_{half}"] for half in "ab")
        added = alpha / a.shape[0] * b @ a
        expected = in_order(path, stored.dense())
        worst = max(worst, float((added - expected).abs().max() / expected.abs().max()))
    assert (worst < 1e-6) == (layout == "padded"), worst


@pytest.mark.long
def test_every_name_and_shape_is_in_a_real_file(tmp_path: Path) -> None:
    """SmolLM2-135M's own GGUF file has a weight of the right shape for each pair."""
    file = smollm2.file()
    shapes = {  # (in, out), in the order of GGUF
        "self_attn.q_proj": (576, 576), "self_attn.k_proj": (576, 192),
        "self_attn.v_proj": (576, 192), "self_attn.o_proj": (576, 576),
        "mlp.gate_proj": (576, 1536), "mlp.up_proj": (576, 1536), "mlp.down_proj": (1536, 576),
    }  # fmt: skip
    layers = {
        f"model.layers.{i}.{name}": LowRankFactors(torch.ones(1 + i % 3, n_in),
                                                   torch.ones(n_out, 1 + i % 3))
        for i in range(30) for name, (n_in, n_out) in shapes.items()
    }  # fmt: skip
    base = BaseReference(str(file), str(file))
    write_adapter(tmp_path / "out", Adapter.of(layers, {}, (), "CAUSAL_LM", base), layout="padded")
    stored = {t.name: tuple(int(n) for n in t.shape) for t in smollm2.reader(file).tensors}
    written = load_file(tmp_path / "out" / ADAPTER_WEIGHTS)
    names = present(gguf_names("llama", layers))
    for path, name in names.items():
        a, b = (written[f"{PREFIX}{path}.lora_{half}.weight"] for half in "AB")
        assert (a.shape[1], b.shape[0]) == stored[f"{name}.weight"]
        assert a.shape[0] == b.shape[1] == 3
    assert len(set(names.values())) == 210


VERDICTS: dict[str, tuple[Callable[[], Any], bool, str]] = {
    "llama": (lambda: tiny_llama(tied=True), True, "convert_lora_to_gguf.py"),
    "t5": (tiny_t5, True, "convert_lora_to_gguf.py"),
    "gpt2": (tiny_gpt2, False, "Conv1D"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_export_says_whether_llama_cpp_takes_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, loads, words = VERDICTS[name]
    model = make()
    model.save_pretrained(tmp_path / "base")
    method = registry.create("lora", r=2)
    inject.inject(model, method, generator=torch.Generator().manual_seed(0))
    save_adapter(model, method, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    capsys.readouterr()
    assert run(["inspect", str(tmp_path / "adapter"), "--json"]) == 0
    verdicts = json.loads(capsys.readouterr().out)["consumers"]
    (verdict,) = [v for v in verdicts if v["name"] == "llama.cpp"]
    assert verdict["loads"] == loads
    assert words in verdict["advice"]
