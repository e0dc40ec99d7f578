"""An adapter folded into a GGUF file: the numbers, what stays as it is, and what is refused."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.peft.layout import PREFIX
from sora_cli.app import run
from sora_cli.gguf import merged_file
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from sora_cli.model.fingerprint import fingerprint
from tests.golden import NUMBER, told
from tests.helpers_disk import files_of_at_most
from tests.helpers_errors import refused

HIDDEN, HEADS = 64, 2
QUERY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
NAMES = {QUERY: "blk.0.attn_q.weight", DOWN: "blk.0.ffn_down.weight"}


class Writer(gguf.GGUFWriter):
    """One that also writes empty arrays, as other programs do."""

    def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
        if vtype == gguf.GGUFValueType.ARRAY and not val:
            return struct.pack("<IIQ", vtype, sub_type, 0)
        return super()._pack_val(val, vtype, add_vtype, sub_type)


def base_file(
    file: Path,
    *,
    width: int = HIDDEN,
    seed: int = 0,
    query: str = "Q4_1",
    down: str = "F16",
    more: Callable[[Writer], None] | None = None,
    other_order: bool = False,
) -> Path:
    """A Llama's file of a few weights, each in another type."""
    numbers = np.random.default_rng(seed)
    endian = gguf.GGUFEndian.BIG if other_order else gguf.GGUFEndian.LITTLE
    writer = Writer(file, "llama", endianess=endian)
    if more is not None:
        more(writer)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_embedding_length(HIDDEN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bé", "<c>"])
    types = gguf.GGMLQuantizationType
    kinds = {NAMES[QUERY]: types[query], NAMES[DOWN]: types[down], "token_embd.weight": types.Q4_1}
    for name, kind in kinds.items():
        weight = numbers.standard_normal((HIDDEN, width if "ffn" in name else HIDDEN))
        try:
            data = gguf.quantize(weight.astype(np.float32), kind)
        except NotImplementedError:  # any bits; K-quants have two scales in front of a block's
            block, size = gguf.GGML_QUANT_SIZES[kind]
            shape = (HIDDEN, weight.shape[1] // block, size)
            bits = numbers.integers(0, 256, shape, np.uint8)
            bits[..., :4] = np.array([0.004, 0.03], np.float16).view(np.uint8)
            data = bits.reshape(HIDDEN, -1)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def adapter_for(
    folder: Path, file: Path, *, scale: float = 1.0, width: int = HIDDEN
) -> dict[str, Tensor]:
    """Write an adapter of ranks 2 and 3; return the updates, (out, in)."""
    g = torch.Generator().manual_seed(0)
    layers = {
        path: LowRankFactors(torch.randn(rank, n_in, generator=g),
                             torch.randn(HIDDEN, rank, generator=g) * scale)
        for path, rank, n_in in ((QUERY, 2, HIDDEN), (DOWN, 3, width))
    }  # fmt: skip
    base = BaseReference(str(file), str(file), None, fingerprint(file))
    write_adapter(folder, Adapter.of(layers, {}, (), "CAUSAL_LM", base))
    return {path: factors.dense().float() for path, factors in layers.items()}


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def numbers_of(tensor: Any) -> Tensor:
    return torch.tensor(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32))


def in_order(path: str, weight: Tensor) -> Tensor:
    """A weight as the converter writes it (LlamaModel.permute)."""
    if path != QUERY:
        return weight
    return weight.view(HEADS, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def merging(tmp_path: Path, *options: str) -> list[str]:
    words = ["merge", str(tmp_path / "a"), "-o", str(tmp_path / "out.gguf"), "--format", "gguf"]
    return [*words, *options]


def merge(tmp_path: Path, *options: str) -> int:
    return run(merging(tmp_path, *options))


def test_disk_that_fills_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it ends, within the last tensor too: one clear error, and nothing is left."""
    source, out = base_file(tmp_path / "base.gguf"), tmp_path / "out.gguf"
    adapter_for(tmp_path / "a", source)
    whole = source.stat().st_size
    words = ("merge", tmp_path / "a", "-o", out, "--format", "gguf")
    for limit in (0, 100, whole // 2, whole - 40, whole - 1):
        with files_of_at_most(limit):
            refused(capsys, *words)
        assert {place.name for place in tmp_path.iterdir()} == {"base.gguf", "a"}


@pytest.mark.parametrize("command", ["merge", "export"])
def test_the_base_is_parsed_once(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For names, weights and the Modelfile: to parse a vocabulary takes seconds."""
    source, parsed = base_file(tmp_path / "base.gguf"), []
    adapter_for(tmp_path / "a", source)

    class Reader(gguf.GGUFReader):
        def __init__(self, file: Path | str) -> None:
            parsed.append(str(file))
            super().__init__(file)

    monkeypatch.setattr(gguf, "GGUFReader", Reader)
    assert run([command, *merging(tmp_path)[1:]]) == 0
    assert parsed[0] == str(source)
    assert len({*parsed}) == len(parsed) == 2  # and the written file, to be compared


@pytest.mark.parametrize(("type", "tolerance"), [("f32", 1e-6), ("f16", 1e-3), ("q8_0", 1e-2)])
def test_the_numbers(
    tmp_path: Path, type: str, tolerance: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """The changed weights are base and update; all else is what it was, to the byte."""
    file, out = base_file(tmp_path / "base.gguf"), tmp_path / "out.gguf"
    updates = adapter_for(tmp_path / "a", file)
    assert merge(tmp_path, "--type", type) == 0
    before, after = tensors(file), tensors(out)
    for path, update in updates.items():
        name = NAMES[path]
        assert after[name].tensor_type.name.lower() == type
        expected = numbers_of(before[name]) + in_order(path, update)
        gap = (numbers_of(after[name]) - expected).abs().max() / expected.abs().max()
        assert gap < tolerance
    assert after["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.Q4_1
    assert np.array_equal(after["token_embd.weight"].data, before["token_embd.weight"].data)
    fields = [
        {n: f.contents() for n, f in gguf.GGUFReader(f).fields.items() if "file_type" not in n}
        for f in (file, out)
    ]
    assert fields[0] == fields[1]
    shown = capsys.readouterr()
    told(shown.err, hide=NUMBER)
    told(shown.out, hide=NUMBER)


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_each_weight_in_its_own_type(
    tmp_path: Path, type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """quantize(dequantize(W) + dW), whole blocks of the same bits; the file's type stays."""
    file, out = base_file(tmp_path / "base.gguf", query=type), tmp_path / "out.gguf"
    updates = adapter_for(tmp_path / "a", file)
    assert merge(tmp_path, "--type", "base") == 0
    told(capsys.readouterr().err, hide=NUMBER)
    before, after = tensors(file), tensors(out)
    for path, update in updates.items():
        old, new = before[NAMES[path]], after[NAMES[path]]
        assert new.tensor_type == old.tensor_type
        total = numbers_of(old) + in_order(path, update)
        expected = gguf.quantize(total.numpy(), old.tensor_type)
        # sums in another order may move a number that lies between two steps
        assert np.mean(new.data == expected) > 0.999
    assert np.array_equal(after["token_embd.weight"].data, before["token_embd.weight"].data)
    kept = gguf.GGUFReader(out).fields["general.file_type"].contents()
    assert kept == gguf.LlamaFileType.MOSTLY_Q4_1


def test_a_type_that_llama_cpp_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A K-quant: near the sum, as near as four bits are. A NaN of the base is not hidden."""
    pytest.importorskip("xllamacpp")
    file = base_file(tmp_path / "base.gguf", width=256, down="Q4_K")
    updates = adapter_for(tmp_path / "a", file, width=256)
    assert merge(tmp_path, "--type", "base") == 0
    old, new = tensors(file)[NAMES[DOWN]], tensors(tmp_path / "out.gguf")[NAMES[DOWN]]
    assert new.tensor_type == old.tensor_type == gguf.GGMLQuantizationType.Q4_K
    total = numbers_of(old) + updates[DOWN]
    assert (numbers_of(new) - total).norm() < 0.1 * total.norm()
    assert (total - numbers_of(old)).norm() > 0.5 * total.norm()
    damaged = gguf.GGUFReader(file, "r+").tensors[1].data
    damaged[0, :2] = np.array([math.nan], np.float16).view(np.uint8)
    damaged.flush()
    refused(capsys, *merging(tmp_path, "--type", "base", "--force"))


@pytest.mark.parametrize("type", ["Q4_K", "IQ2_XS"])
def test_a_type_that_nothing_here_writes(
    tmp_path: Path, type: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """K-quants without llama.cpp, and types that want statistics; in another type they merge."""
    monkeypatch.setitem(sys.modules, "xllamacpp.xllamacpp", None)
    merged_file._llama_cpp.cache_clear()
    adapter_for(tmp_path / "a", base_file(tmp_path / "base.gguf", width=256, down=type), width=256)
    refused(capsys, *merging(tmp_path, "--type", "base"))
    merged_file._llama_cpp.cache_clear()
    assert not (tmp_path / "out.gguf").exists()
    assert merge(tmp_path, "--type", "f16") == 0


def odd_metadata(writer: Writer) -> None:
    kinds = gguf.GGUFValueType
    writer.add_custom_alignment(256)
    writer.add_key_value("some.empty", [], kinds.ARRAY, kinds.INT32)
    writer.add_key_value("some.words", [b"\xff\xfe", b"a"], kinds.ARRAY, kinds.STRING)
    writer.add_float32("some.number", float("nan"))


def test_metadata_is_copied_to_the_byte(tmp_path: Path) -> None:
    """Empty arrays, words that are no UTF-8, NaN, and tensors that begin at other places."""
    file, out = base_file(tmp_path / "base.gguf", more=odd_metadata), tmp_path / "out.gguf"
    updates = adapter_for(tmp_path / "a", file)
    assert merge(tmp_path, "--type", "f32") == 0
    readers = [gguf.GGUFReader(f) for f in (file, out)]
    fields = [
        {n: [p.tobytes() for p in f.parts] for n, f in r.fields.items() if "file_type" not in n}
        for r in readers
    ]
    assert fields[0] == fields[1]
    assert readers[1].fields["general.file_type"].contents() == gguf.LlamaFileType.ALL_F32
    assert all(tensor.data_offset % 256 == 0 for tensor in readers[1].tensors)
    before, after = tensors(file), tensors(out)
    for path, update in updates.items():
        expected = numbers_of(before[NAMES[path]]) + in_order(path, update)
        assert torch.allclose(numbers_of(after[NAMES[path]]), expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"query": "Q8_1"},
        {"more": lambda w: w.add_uint16("split.count", 3)},
        {"other_order": True},
    ],
    ids=" ".join,
)
def test_a_base_that_cannot_be_read(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter_for(tmp_path / "a", base_file(tmp_path / "base.gguf", **options))
    refused(capsys, *merging(tmp_path, "--type", "f32"))
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(("query", "type"), [("F16", "f16"), ("Q4_1", "base"), ("Q8_0", "base")])
def test_an_update_that_is_lost(
    tmp_path: Path, query: str, type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Next to numbers of few bits: refused, but with --accept-loss and in float32."""
    adapter_for(tmp_path / "a", base_file(tmp_path / "base.gguf", query=query), scale=1e-6)
    refused(capsys, *merging(tmp_path, "--type", type), hide=NUMBER)
    assert not (tmp_path / "out.gguf").exists()
    assert merge(tmp_path, "--type", type, "--accept-loss") == 0
    told(capsys.readouterr().err, hide=NUMBER)
    assert merge(tmp_path, "--type", "f32", "--force") == 0


def test_a_weight_that_is_stored_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp's file has no place for it, and nothing is left out without a word."""
    adapter_for(tmp_path / "a", base_file(tmp_path / "base.gguf"))
    config, weights = (tmp_path / "a" / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    stored = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**stored, "modules_to_save": ["lm_head"]}), encoding="utf-8")
    save_file({**load_file(weights), f"{PREFIX}lm_head.weight": torch.ones(3, HIDDEN)}, weights)
    refused(capsys, *merging(tmp_path))


def test_rows_that_do_not_fit_into_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter_for(tmp_path / "a", base_file(tmp_path / "base.gguf", width=40), width=40)
    refused(capsys, *merging(tmp_path, "--type", "q8_0"))
    assert merge(tmp_path) == 0


def test_another_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other weights are taken with --force only; a directory is no GGUF file."""
    adapter_for(tmp_path / "a", base_file(tmp_path / "base.gguf"))
    other = str(base_file(tmp_path / "other.gguf", seed=1))
    refused(capsys, *merging(tmp_path, "--base", other))
    assert merge(tmp_path, "--base", other, "--force") == 0
    (tmp_path / "folder").mkdir()
    refused(capsys, *merging(tmp_path, "--base", str(tmp_path / "folder"), "--force"))


@pytest.mark.parametrize(
    "options", [["--untie"], ["--dtype", "float16"], ["--type", "q4_0"]], ids=" ".join
)
def test_options(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    adapter_for(tmp_path / "a", base_file(tmp_path / "base.gguf"))
    refused(capsys, *merging(tmp_path, *options))
    refused(capsys, "merge", tmp_path / "a", "-o", tmp_path / "d", "--type", "f16")
