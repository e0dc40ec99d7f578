"""What a merge writes and leaves out, on full disks and odd file systems too; and its memory."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import read_json, write_json
from sora_cli.adapter.reading import open_adapter
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.merge import blocks as merge_blocks
from sora_cli.merge import write as merge_write
from sora_cli.merge.incoming import incoming
from sora_cli.merge.merge import merge_adapter, prepare_merge
from sora_cli.merge.plan import Item
from sora_cli.merge.rounding import Storing
from sora_cli.model.fingerprint import read_header
from tests.helpers_adapters import LABELS, adapt, save_backbone
from tests.helpers_errors import refusal
from tests.helpers_markdown import HOSTILE, tokens
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.shared_files import ROOT

HEAD = ("bert.pooler", "classifier")
Made = tuple[Path, Adapter]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A base directory, and an adapter of it at adapter/."""
    model = tiny_bert()
    base = save_backbone(model, tmp_path / "base")
    adapter = adapt(model, base, head=HEAD)
    write_adapter(tmp_path / "adapter", adapter)
    return base, adapter


def _left(tmp: Path) -> list[str]:
    return [path.name for path in tmp.iterdir() if "out" in path.name]


def test_files_beside_the_weights(tmp_path: Path, made: Made) -> None:
    """Those that transformers or sentence-transformers would load, and the licence."""
    base, adapter = made
    texts = ["tokenizer.json", "vocab.txt", "special_tokens_map.json", "chat_template.jinja",
             "additional_chat_templates/rag.jinja", "tokenizer.4.0.0.json", "spm.model",
             "generation_config.json", "preprocessor_config.json", "LICENSE", "Notice.txt",
             "modeling_own.py", "1_Pooling/config.json"]  # fmt: skip
    weights = ["pytorch_model.bin", "model.onnx", "tf_model.h5", "onnx/config.json",
               "consolidated.safetensors", "original/params.json",
               "checkpoint-3/trainer_state.json",
               "pytorch_model.bin.index.json"]  # fmt: skip
    others = ["data_config.json", "training_args.bin", "all_results.json", "2_Dense/config.json",
              "sora.json"]  # fmt: skip
    for name in (*texts, *weights, *others, "README.md", ".gitattributes", "inner/config.json"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    write_json(base / "modules.json", [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}])
    write_json(base / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}})
    merged = merge_adapter(adapter, tmp_path / "out")
    out = tmp_path / "out"
    for name in texts:
        assert (out / name).read_text() == name
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert there == {*texts, "config.json", "model.safetensors", "README.md", "sora_merge.json",
                     "sora.json", "modules.json", "tokenizer_config.json"}  # fmt: skip
    assert read_json(out / "sora.json")["task"] == adapter.meta.task, (
        "the adapter's, not the base's"
    )
    assert set(merged.left_files) == {
        "pytorch_model.bin", "model.onnx", "tf_model.h5", "onnx/", "consolidated.safetensors",
        "original/", "checkpoint-3/", "inner/", "pytorch_model.bin.index.json", "data_config.json",
        "training_args.bin", "all_results.json", "2_Dense/",
    }  # fmt: skip
    assert merged.tokenizer


def test_code_that_no_configuration_names_stays(tmp_path: Path, made: Made) -> None:
    (made[0] / "train.py").write_text("import model")
    assert merge_adapter(made[1], tmp_path / "out").left_files == ("train.py",)


def test_model_card(tmp_path: Path, made: Made) -> None:
    base = made[0]
    (base / "README.md").write_text("# The base")
    with open_adapter(tmp_path / "adapter") as file:
        merge_adapter(file, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# The base" not in card
    assert str(base) not in card, "a place on this machine"
    assert "\nbase_model:" not in card, "it has no id on the Hub"
    for part in (f"`{base.name}`", "BertForSequenceClassification", "method: sora", "rank 1 to 4",
                 "`classifier`", *LABELS, "from_pretrained"):  # fmt: skip
        assert part in card, part


def test_a_card_of_names_that_others_gave(tmp_path: Path, made: Made) -> None:
    adapter = made[1]
    meta = adapter.meta.model_copy(
        update={"labels": HOSTILE, "task": HOSTILE[0], "method": HOSTILE[4],
                "lineage": ({"command": "export", "place": str(tmp_path / "<b>")},)}
    )  # fmt: skip
    head = {**adapter.head, "classifier.weight": torch.randn(len(HOSTILE), 32),
            "classifier.bias": torch.zeros(len(HOSTILE))}  # fmt: skip
    merge_adapter(adapter.with_meta(meta).with_full(head), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text().partition("\n---\n")[2]
    assert str(tmp_path) not in card
    harm = ("html", "link", "image", "table", "heading", "em", "strong", "s_")
    assert [part.content for part in tokens(card) if part.type.startswith(harm)] == [""] * 2
    assert "&lt;img src=x onerror=alert(1)>" in card


def test_keys_of_the_configuration_stay(tmp_path: Path, made: Made) -> None:
    """Also those that transformers does not know, or would leave out."""
    base, adapter = made
    config = read_json(base / "config.json")
    write_json(base / "config.json", {**config, "of_our_own": [1, {"a": None}]})
    merge_adapter(adapter, tmp_path / "out")
    merged = read_json(tmp_path / "out" / "config.json")
    assert merged["of_our_own"] == [1, {"a": None}]
    changed = {key for key in merged if merged[key] != config.get(key)}
    assert changed == {"architectures", "id2label", "label2id", "problem_type", "sora_merged",
                       "of_our_own"}  # fmt: skip


def test_a_file_is_the_same_from_memory_and_from_the_disk(tmp_path: Path, made: Made) -> None:
    merge_adapter(made[1], tmp_path / "one")
    with open_adapter(tmp_path / "adapter") as file:
        assert incoming(file).digest() == incoming(made[1]).digest()
        merge_adapter(file, tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    for name in set(names) - {"README.md", "sora.json"}:  # those know the ranks on the disk
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_not_touched_is_copied_to_the_byte(tmp_path: Path) -> None:
    """Numbers in other formats, NaN and negative zero among them."""
    model = tiny_llama()
    base = save_backbone(model, tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.odd"] = torch.tensor([float("nan"), -0.0, float("inf")])
    tensors["model.layers.0.whole"] = torch.arange(5, dtype=torch.int16)
    tensors["model.layers.0.none"] = torch.zeros(0, 3)
    tensors["model.layers.0.one"] = torch.tensor(2.5, dtype=torch.float16)
    tensors["model.layers.0.eight"] = torch.randn(7).to(torch.float8_e4m3fn)
    save_file(tensors, file, metadata={"format": "pt", "more": "text"})
    factors = LowRankFactors(torch.ones(1, 32), torch.ones(32, 1))
    path = "model.layers.0.self_attn.q_proj"
    adapter = adapt(model, base)
    merge_adapter(Adapter.of({path: factors}, {}, (), "CAUSAL_LM", adapter.base), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert list(merged) == list(tensors) or merged.keys() == tensors.keys()
    for name, tensor in tensors.items():
        same = (
            merged[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
        )
        assert same == (name != f"{path}.weight"), name
    header = (tmp_path / "out" / "model.safetensors").read_bytes()[:2000]
    assert b'"more":"text"' in header


def test_a_full_disk_is_said_before(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(SoraError, match=r"of disk, and 1\.0 kB are free"):
        merge_adapter(made[1], tmp_path / "out")
    assert not _left(tmp_path)


@pytest.mark.parametrize("work", ["copy_file_range", "pwrite"])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, work, full, raising=False)
    with pytest.raises(SoraError, match="no space left"):
        merge_adapter(made[1], tmp_path / "out")
    assert not _left(tmp_path)


def test_an_interruption_leaves_nothing(tmp_path: Path, made: Made) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    plan = prepare_merge(made[1], tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        plan.write(interrupt)
    assert not _left(tmp_path)


def test_progress_counts_every_byte_of_the_weights(tmp_path: Path, made: Made) -> None:
    written: list[int] = []
    plan = prepare_merge(made[1], tmp_path / "out")
    plan.write(written.append)
    assert sum(written) == plan.weights == (tmp_path / "out" / "model.safetensors").stat().st_size
    total = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert plan.disk <= total < plan.disk + 10_000  # the configuration and the card beside them


def test_copies_without_the_kernels_help(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where source and target are on different kinds of file system, for one."""
    merge_adapter(made[1], tmp_path / "one")

    def refuses(*_: Any) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuses, raising=False)
    monkeypatch.setattr(merge_write, "_BUFFER", 1000)
    monkeypatch.setattr(merge_write, "_STEP", 3000)
    merge_adapter(made[1], tmp_path / "two")
    one, two = (tmp_path / d / "model.safetensors" for d in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_base_that_gets_shorter_meanwhile(tmp_path: Path, made: Made) -> None:
    plan = prepare_merge(made[1], tmp_path / "out")
    os.truncate(made[0] / "model.safetensors", 50_000)
    with pytest.raises(SoraError, match=r"ends too early|truncated or corrupt"):
        plan.write()
    assert not _left(tmp_path)


def test_a_write_that_went_wrong_is_noticed(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_write, "write_at", lambda _, content, __: len(content))
    with pytest.raises(SoraError, match=r"truncated|read back differently"):
        merge_adapter(made[1], tmp_path / "out")
    assert not _left(tmp_path)


@pytest.mark.parametrize("block", [2**7, 2**11])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("bert", "base"), ("bert", "float16"), ("gpt2", "base")]
)
def test_blocks_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, block: int
) -> None:
    """However a weight is cut into blocks, all of it is added to, and a head is cast."""
    model = tiny_bert() if kind == "bert" else tiny_gpt2()
    base = save_backbone(model, tmp_path / "base")
    adapter = adapt(model, base, head=HEAD if kind == "bert" else ())
    merge_adapter(adapter, tmp_path / "whole", storing=Storing(dtype, accept_loss=True))
    monkeypatch.setattr(merge_blocks, "_BLOCK", block)
    monkeypatch.setattr(merge_blocks, "_ROWS", 1)
    merge_adapter(adapter, tmp_path / "blocks", storing=Storing(dtype, accept_loss=True))
    whole, blocks = (load_file(tmp_path / d / "model.safetensors") for d in ("whole", "blocks"))
    assert whole.keys() == blocks.keys()
    for name, tensor in whole.items():
        assert torch.allclose(blocks[name], tensor, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("shape", [(4097, 4096), (50257, 768), (129, 30_000), (3, 7), (9, 2**22)])
def test_no_block_is_a_single_row(shape: tuple[int, int]) -> None:
    """Its product would be rounded in another order than the whole one."""
    length = 4 * shape[0] * shape[1]
    ranges = merge_blocks.Blocks.ranges(Item("w", "F32", shape, length, update="w"))
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == shape[0]
    assert min(stop - start for start, stop in ranges) > 1
    assert max(stop - start for start, stop in ranges) * shape[1] <= merge_blocks._LARGEST_BLOCK


@pytest.mark.parametrize("update", [None, "w"])
def test_an_empty_tensor_has_no_block(update: str | None) -> None:
    assert merge_blocks.Blocks.ranges(Item("w", "F32", (0, 5), 0, update=update)) == []


def test_too_large_for_the_bases_dtype(tmp_path: Path) -> None:
    """Finite in float32, infinite once it is cast."""
    model = tiny_llama().half()
    base = save_backbone(model, tmp_path / "base")
    path = "model.layers.0.self_attn.q_proj"
    factors = LowRankFactors(torch.full((1, 32), 300.0), torch.full((32, 1), 300.0))
    adapter = Adapter.of({path: factors}, {}, (), "CAUSAL_LM", adapt(model, base).base)
    with pytest.raises(SoraError, match=f"'{path}' would hold NaN or infinity as torch.float16"):
        merge_adapter(adapter, tmp_path / "out")
    assert not _left(tmp_path)


def test_a_head_that_is_not_finite(tmp_path: Path, made: Made) -> None:
    made[1].head["classifier.bias"][1] = float("nan")  # type: ignore[index]
    with pytest.raises(SoraError, match=r"'classifier\.bias' of the adapter holds NaN"):
        merge_adapter(made[1], tmp_path / "out")
    assert not _left(tmp_path)


def test_quantised_weights_are_refused_by_their_dtype(tmp_path: Path, made: Made) -> None:
    base, adapter = made
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.weight"))
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SoraError, match="is quantised: it is stored as I8"):
        merge_adapter(adapter, tmp_path / "out", force=True)


def test_pickled_weights_are_refused(tmp_path: Path, made: Made) -> None:
    base, adapter = made
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with refusal():
        merge_adapter(adapter, tmp_path / "out", force=True)
    (base / "pytorch_model.bin").unlink()
    with pytest.raises(SoraError, match=r"holds neither model\.safetensors nor"):
        merge_adapter(adapter, tmp_path / "out", force=True)


def test_a_base_with_an_adapter_in_it_is_refused(tmp_path: Path, made: Made) -> None:
    (made[0] / "adapter_config.json").write_text("{}")
    with pytest.raises(SoraError, match="holds an adapter of its own"):
        merge_adapter(made[1], tmp_path / "out")


def test_what_no_file_holds_is_left_out_by_force(tmp_path: Path, made: Made) -> None:
    adapter = made[1]
    less = {k: v for k, v in adapter.head.items() if k != "classifier.bias"}
    short = Adapter.of(adapter.layers, less, HEAD, "SEQ_CLS", adapter.base, meta=adapter.meta)
    merged = merge_adapter(short, tmp_path / "out", force=True)
    assert merged.absent == ("classifier.bias",)
    assert "classifier.bias" not in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.usefixtures("made")
def test_command_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    first = captured.err.splitlines()[0]
    assert first.startswith("this takes ")
    assert "of disk (" in first
    assert "of memory" in first or sys.platform != "linux"
    assert captured.out == ""


def test_untie_is_an_option_of_the_command(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    base = save_backbone(model, tmp_path / "base")
    pair = LowRankFactors(torch.ones(1, 32), torch.ones(64, 1))
    adapter = Adapter.of({"lm_head": pair}, {}, (), "CAUSAL_LM", adapt(model, base).base)
    write_adapter(tmp_path / "adapter", adapter)
    words = ["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "out")]
    assert run(words) == 2
    assert run([*words, "--untie"]) == 0
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base_weight = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(merged.model.embed_tokens.weight, base_weight)
    assert torch.equal(merged.lm_head.weight, base_weight + 1)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_benchmark_runs_and_memory_is_bounded(tmp_path: Path) -> None:
    """Of a base of 100 MB, the process takes less than that for itself while it merges."""
    program = ROOT / "benchmarks" / "merge.py"
    words = [sys.executable, str(program), "--quick", "--dtype", "bf16", "--place", str(tmp_path)]
    done = subprocess.run([*words, "--shards", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    memory, before, said = (int(n) for n in lines[2].replace("MB", "").split()[-4:-1])
    assert memory - before < 90
    assert memory < said < 1000


def test_every_tensor_begins_where_its_dtype_may(tmp_path: Path) -> None:
    """A new head does not go behind three single bytes, where no float can begin."""
    model, base = tiny_llama(num_labels=3), tmp_path / "base"
    model.save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    del tensors["score.weight"]
    tensors["model.layers.0.odd"] = torch.arange(3, dtype=torch.uint8)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    merge_adapter(adapt(model, base, head=("score",)), tmp_path / "out")
    entries = list(read_header(tmp_path / "out" / "model.safetensors"))
    assert {entry.name for entry in entries} > {"score.weight", "model.layers.0.odd"}
    assert all(entry.start % (4 if entry.dtype == "F32" else 1) == 0 for entry in entries)


def test_wrong_bytes_are_noticed(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = merge_write.write_at

    def zeros(out: int, content: Any, offset: int) -> int:
        return write(out, bytes(len(content)) if offset else content, offset)

    monkeypatch.setattr(merge_write, "write_at", zeros)
    with pytest.raises(SoraError, match="read back differently"):
        merge_adapter(made[1], tmp_path / "out")
    assert not _left(tmp_path)


def test_a_file_that_ends_while_it_is_copied(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(100))
    with (tmp_path / "short").open("rb") as source, (tmp_path / "copy").open("wb") as target:
        assert merge_write._copy_range(source.fileno(), target.fileno(), 20, 0, 80) == 80
        with pytest.raises(SoraError, match="ends too early"):
            merge_write._copy_range(source.fileno(), target.fileno(), 20, 0, 81)


def test_other_weights_by_the_configuration_are_refused(tmp_path: Path, made: Made) -> None:
    config = read_json(made[0] / "config.json")
    write_json(made[0] / "config.json", {**config, "transformers_weights": "x.safetensors"})
    with pytest.raises(SoraError, match=r"names other weights than model\.safetensors"):
        merge_adapter(made[1], tmp_path / "out")
