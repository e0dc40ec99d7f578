"""A packed file: the same directory byte by byte, and clear errors for a damaged one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from methods.factors import LowRankFactors
from methods.grid import round_factors
from sora_cli.adapter import packed, packing
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.packing import pack, unpack
from sora_cli.adapter.parts.form import Form
from sora_cli.adapter.places import is_packed
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.rounding import round_head
from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from sora_cli.model.files import SORA_FILE
from tests.helpers_errors import refused
from tests.helpers_runs import files_of

SCORE = "base_model.model.score.bias"


def factors(rank: int, n_in: int, n_out: int, bits: int) -> LowRankFactors:
    g = torch.Generator().manual_seed(rank + n_in)
    both = torch.randn(rank, n_in, generator=g), torch.randn(n_out, rank, generator=g)
    return round_factors(LowRankFactors(*both), bits)


def _gives(monkeypatch: pytest.MonkeyPatch, files: Any) -> None:
    """Let the base model's tokenizer, once saved, give these files."""
    for module in (packed, packing):
        monkeypatch.setattr(module, "base_files", files)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A rounded adapter with a linear layer, an embedding, a convolution and a head."""
    layers = {
        "l.0": factors(3, 70, 130, 3),
        "l.1": factors(1, 5, 4, 3),
        "embed": factors(2, 90, 8, 3),
        "conv": factors(2, 18, 6, 3),
    }
    head = {"score.weight": torch.randn(2, 70), "score.bias": torch.ones(2)}
    forms = {"embed": Form(embedding=True), "conv": Form(kernel=(3, 3))}
    base = BaseReference("base", "base", None, "x")
    adapter = Adapter.of(layers, head, ("score",), "SEQ_CLS", base, forms=forms)
    write_adapter(tmp_path / "a", adapter)
    return tmp_path / "a"


@pytest.fixture
def file(directory: Path, tmp_path: Path) -> Path:
    pack(directory, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_it_unpacks_to_the_same_bytes(directory: Path, file: Path, tmp_path: Path) -> None:
    assert is_packed(file)
    assert unpack(file, tmp_path / "b") == ()
    assert files_of(tmp_path / "b") == files_of(directory)


def test_its_parts_have_the_sizes_that_are_told(directory: Path, tmp_path: Path) -> None:
    numbers = 3 * 200 + 1 * 9 + 2 * 98 + 2 * 24
    done = pack(directory, tmp_path / "a.safetensors")
    assert done.bits == 3
    # each of the eight tensors begins with a byte, and each row or column with a scale
    assert numbers * 3 / 8 < done.factors < numbers * 3 / 8 + 8 + 2 * (3 * 5 + 2 + 2 * 3 + 2 * 2)
    assert done.head == 4 * (2 * 70 + 2)
    assert done.size == (tmp_path / "a.safetensors").stat().st_size
    assert done.factors + done.head + done.texts < done.size


def test_a_head_of_8_bits_is_packed(directory: Path, tmp_path: Path) -> None:
    adapter = read_adapter(directory)
    head = round_head(adapter.head)
    assert head.error is not None
    assert 0 < head.error < 0.01
    assert torch.equal(head.tensors["score.bias"], adapter.head["score.bias"])
    write_adapter(
        tmp_path / "b",
        Adapter.of(adapter.layers, head.tensors, ("score",), "SEQ_CLS", adapter.base),
    )
    done = pack(tmp_path / "b", tmp_path / "b.safetensors")
    assert done.head == head.packed == 2 * 70 + 2 * 2 * 2 + 4 * 2


def test_files_of_the_tokenizer_are_kept_if_the_base_model_has_others(
    directory: Path, tmp_path: Path
) -> None:
    (directory / "tokenizer.json").write_text('{"added": "ü"}')
    (directory / "spiece.model").write_bytes(bytes(range(256)))
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    hidden = directory / "additional_chat_templates" / ".DS_Store"
    hidden.touch()
    done = pack(directory, tmp_path / "b.safetensors")
    hidden.unlink()
    assert done.left_out == ()
    unpack(tmp_path / "b.safetensors", tmp_path / "b")
    assert files_of(tmp_path / "b") == files_of(directory)


def test_the_base_models_tokenizer_is_left_out_and_made_again(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "tokenizer.json").write_text("{}")
    _gives(monkeypatch, lambda *_: {"tokenizer.json": b"{}"})
    assert pack(directory, tmp_path / "b.safetensors").left_out == ("tokenizer.json",)
    assert unpack(tmp_path / "b.safetensors", tmp_path / "b") == ()
    assert files_of(tmp_path / "b") == files_of(directory)
    _gives(monkeypatch, lambda *_: {"tokenizer.json": b"{ }"})
    assert unpack(tmp_path / "b.safetensors", tmp_path / "c") == ("tokenizer.json",)
    assert not (tmp_path / "c" / "tokenizer.json").exists()


def test_every_command_gets_the_tokenizer(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    made = {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ messages }}"}
    _gives(monkeypatch, lambda *_: made)
    file = tmp_path / "b.safetensors"
    assert set(pack(directory, file).left_out) == set(made)
    verbs = {"padded": ["export", "--layout", "padded", "--no-verify"], "cut": ["prune"]}
    for name, words in verbs.items():
        assert run([*words, str(file), "-o", str(tmp_path / name)]) == OK
        assert {n: (tmp_path / name / n).read_bytes() for n in made} == made
    again = tmp_path / "again.safetensors"
    assert run(["export", str(file), "-o", str(again), "--format", "packed"]) == OK
    assert again.read_bytes() == file.read_bytes()
    capsys.readouterr()
    assert run(["push", str(file), "--base-id", "o/base", "--dry-run", "--json"]) == OK
    pushed = json.loads(capsys.readouterr().out)
    assert made.keys() <= pushed["files"].keys()
    assert pushed["repository"] == "b"


def test_a_tokenizer_that_cannot_be_made_again_is_told(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (directory / "tokenizer.json").write_text("{}")
    _gives(monkeypatch, lambda *_: {"tokenizer.json": b"{}"})
    file = tmp_path / "b.safetensors"
    pack(directory, file)
    _gives(monkeypatch, lambda *_: {})
    assert run(["prune", str(file), "-o", str(tmp_path / "cut")]) == OK
    told = capsys.readouterr().err
    assert f"note: {file}: not made again" in told
    assert "tokenizer.json" in told
    assert run(["inspect", str(file)]) == OK  # reads no tokenizer
    assert "not made again" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["export", "--format", "packed"], "a.safetensors"),
        (["export", "--format", "packed"], "link.safetensors"),
        (["export", "--format", "gguf"], "link.gguf"),
        (["inspect"], "link.png"),
        (["prune", "--rank", "1"], "."),
        (["export", "--layout", "padded"], "."),
        (["merge"], "."),
    ],
)
def test_it_is_not_overwritten_by_the_command_that_reads_it(
    file: Path, words: list[str], output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    for name in ("link.safetensors", "link.gguf", "link.png"):
        (tmp_path / name).symlink_to(file)
    option = "--plot" if words == ["inspect"] else "-o"
    refused(capsys, *words, file, option, tmp_path / output, "--force")
    assert file.read_bytes() == before


def test_numbers_off_the_grid_are_not_packed(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever number of bits `sora.json` names."""
    weights = directory / "adapter_model.safetensors"
    tensors = {name: torch.randn(t.shape) for name, t in _content(weights)[1].items()}
    save_file(tensors, weights, {"format": "pt"})
    out = tmp_path / "b.safetensors"
    refused(capsys, "export", directory, "-o", out, "--format", "packed")
    assert not out.exists()


def test_an_adapter_that_is_not_rounded_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = LowRankFactors(torch.randn(2, 8), torch.randn(6, 2))
    base = BaseReference("base", "base", None, "x")
    write_adapter(tmp_path / "p", Adapter.of({"l": plain}, {}, (), None, base))
    out = tmp_path / "p.safetensors"
    refused(capsys, "export", tmp_path / "p", "-o", out, "--format", "packed")
    assert not out.exists()


def test_weights_that_another_program_wrote_anew_are_refused(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = directory / "adapter_model.safetensors"
    save_file(_content(weights)[1], weights, {"format": "pt", "by": "another"})
    out = tmp_path / "b.safetensors"
    refused(capsys, "export", directory, "-o", out, "--format", "packed")
    assert not out.exists()


def _content(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(file, "pt") as stored:
        return stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def _with(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Write the file anew with other tensors and a digest that fits."""
    metadata, tensors = _content(file)
    change(tensors)
    made = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(made, file, {**metadata, "sha256": packed.digest_of(made)})


def _with_table(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the file anew with another table."""

    def texts(tensors: dict[str, Tensor]) -> None:
        line, _, rest = zlib.decompress(tensors["texts"].numpy().tobytes()).partition(b"\n")
        table = json.loads(line)
        change(table)
        text = zlib.compress(json.dumps(table).encode() + b"\n" + rest)
        tensors["texts"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)

    _with(file, texts)


def test_a_file_cut_short_or_changed_is_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    refused(capsys, "inspect", file)
    file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    for words in (["inspect", file], ["export", file, "-o", tmp_path / "b"]):
        refused(capsys, *words)
        assert not (tmp_path / "b").exists()


def test_a_newer_version_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata, tensors = _content(file)
    save_file(tensors, file, {**metadata, "version": "2"})
    refused(capsys, "inspect", file)


TABLES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a shape too long": lambda t: t["tensors"][0][1].__setitem__(0, 10**6),
    "a shape of nothing": lambda t: t["tensors"][0][1].__setitem__(0, 0),
    "9 bits": lambda t: t["tensors"][0].__setitem__(2, 9),
    "a tensor less": lambda t: t["tensors"].pop(),
    "a file above": lambda t: t["files"].append(["../../x", 0]),
    "a file through a name": lambda t: t["files"].append(["tokenizer.json/../x", 0]),
    "a name with a zero byte": lambda t: t["files"].append(["README.md\0", 0]),
    "a file below a file": lambda t: t["files"].append(["vocab.json/x", 0]),
    "the weights again": lambda t: t["files"].append(["adapter_model.safetensors", 0]),
    "no name of a template": lambda t: t["files"].append(["additional_chat_templates/\0", 0]),
    "a long name of a template": lambda t: t["files"].append(
        ["additional_chat_templates/" + "x" * 256, 0]
    ),
    "the folder of templates": lambda t: t["files"].append(["additional_chat_templates", 0]),
    "a size below zero": lambda t: t["files"].extend([["vocab.txt", -9], ["vocab.json", 9]]),
    "a file twice": lambda t: t["files"].append(t["files"][0]),
    "no configuration": lambda t: t["files"][0].__setitem__(0, "vocab.txt"),
    "a tensor twice": lambda t: t["tensors"][1].__setitem__(0, t["tensors"][0][0]),
    "a tensor of the head": lambda t: t["tensors"][0].__setitem__(0, SCORE),
    "bits as a text": lambda t: t["tensors"][0].__setitem__(2, "3"),
    "a file of the base that is none": lambda t: t["of_base"].update({"/etc/passwd": "0" * 64}),
    "a file of ours of the base": lambda t: t["of_base"].update({"sora.json": "0" * 64}),
    "a digest cut": lambda t: t["of_base"].update({"tokenizer.json": "0"}),
    "no files": lambda t: t.pop("files"),
}


@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
def test_a_table_that_does_not_fit_is_refused(
    file: Path,
    change: Callable[[dict[str, Any]], object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _with_table(file, change)
    refused(capsys, "export", file, "-o", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("integers", lambda t: t.view(torch.int8)),
        ("integers", Tensor.bfloat16),
        ("integers", lambda t: t[None]),
        ("scales", Tensor.float),
        ("scales", Tensor.half),
        ("scales", lambda t: t[0]),
        ("scales", lambda t: t * torch.nan),
        ("scales", lambda t: t.sign() * 1e38),
        ("texts", Tensor.bfloat16),
        ("texts", lambda t: t.float().to(torch.float8_e4m3fn)),
        ("texts", lambda t: t[:-4]),
        ("texts", lambda t: torch.cat([t, t])),
        (SCORE, lambda t: t * torch.inf),
        ("base_model.model.x\0", lambda _: torch.ones(1)),
        ("other", lambda _: torch.ones(1)),
    ],
)
def test_tensors_that_the_page_does_not_know_are_refused(
    file: Path,
    name: str,
    change: Callable[[Tensor | None], Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By every command, by the file's own name, and before anything is written."""
    _with(file, lambda tensors: tensors.update({name: change(tensors.get(name))}))
    for command in (["export", file, "-o", tmp_path / "b"], ["inspect", file]):
        refused(capsys, *command)
        assert {place.name for place in tmp_path.iterdir()} == {"a", "a.safetensors"}


def test_a_field_that_is_twice_in_the_header_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    again = header[:-1] + b',"scales":' + json.dumps(json.loads(header)["scales"]).encode() + b"}"
    file.write_bytes(len(again).to_bytes(8, "little") + again + content[8 + length :])
    refused(capsys, "inspect", file)


def test_errors_within_it_name_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        line, _, rest = zlib.decompress(tensors["texts"].numpy().tobytes()).partition(b"\n")
        text = zlib.compress(line + b"\nx" + rest[1:])
        tensors["texts"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)

    _with(file, damage)
    refused(capsys, "inspect", file)


def test_commands_read_it(file: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(file), "--json"]) == OK
    facts = json.loads(capsys.readouterr().out)
    assert run(["inspect", str(directory), "--json"]) == OK
    other = json.loads(capsys.readouterr().out)
    assert facts["bits"] == other["bits"] == 3
    assert facts["spectra"] == other["spectra"]
    assert facts["directory"] == str(file)
    assert facts["consumers"] == []
    assert run(["inspect", str(file)]) == OK
    assert "unpack it: sora export" in capsys.readouterr().out


def test_names_of_the_output_are_checked(
    directory: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", directory, "--format", "packed", "-o"]
    refused(capsys, *words, tmp_path / "b")
    refused(capsys, *words, file)
    other = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(1)}, other)
    refused(capsys, *words, other, "--force")
    assert run([*map(str, words), str(file), "--force"]) == OK


def test_other_dtypes_are_refused(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "export", directory, "-o", tmp_path / "b", "--dtype", "bfloat16")
    assert (directory / SORA_FILE).is_file()
    assert not (tmp_path / "b").exists()
