"""Damaged and malicious adapter directories: refused in three lines at most, nothing written."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sora_cli.app import run
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, SORA_FILE
from tests.golden import told
from tests.helpers_counted import calls_of
from tests.helpers_disk import files_of_at_most
from tests.helpers_errors import error_text, refused

P = "base_model.model."
QUERY, VALUE = "enc.0.query", "enc.0.value"
A, B, HEAD = f"{P}{QUERY}.lora_A.weight", f"{P}{QUERY}.lora_B.weight", f"{P}classifier.weight"
Damage = Callable[[Path], object]


def _lora(directory: Path) -> Path:
    """A PEFT LoRA of two modules with a head."""
    directory.mkdir(parents=True)
    g = torch.Generator().manual_seed(0)
    shapes = {A: (2, 6), B: (5, 2), HEAD: (3, 5)}
    shapes |= {key.replace(QUERY, VALUE): shape for key, shape in shapes.items() if key != HEAD}
    save_file(
        {key: torch.randn(shape, generator=g) for key, shape in shapes.items()},
        directory / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "some/model",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"],
    }
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config))
    return directory


def _adalora(directory: Path) -> Path:
    """A PEFT AdaLoRA of two modules, one of them dead."""
    _lora(directory)
    e = f"{P}{QUERY}.lora_E"
    tensors = {
        e: torch.randn(2, 1),
        e.replace("lora_E", "lora_A"): torch.randn(2, 6),
        e.replace("lora_E", "lora_B"): torch.randn(5, 2),
        f"{P}{VALUE}.lora_E": torch.zeros(0, 1),
        f"{P}{VALUE}.lora_A": torch.zeros(0, 6),
        f"{P}{VALUE}.lora_B": torch.zeros(5, 0),
    }
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    pattern = {f"{QUERY}.lora_E": [True, True, False], f"{VALUE}.lora_E": [False] * 3}
    _config(peft_type="ADALORA", init_r=3, rank_pattern=pattern)(directory)
    return directory


def _config(**changes: Any) -> Damage:
    def damage(directory: Path) -> None:
        config = json.loads((directory / ADAPTER_CONFIG).read_text())
        (directory / ADAPTER_CONFIG).write_text(json.dumps({**config, **changes}))

    return damage


def _raw_config(content: bytes | str) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / ADAPTER_CONFIG).write_bytes(data)


def _sora(content: Any) -> Damage:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda directory: (directory / SORA_FILE).write_text(text)


def _tensors(**changes: torch.Tensor | None) -> Damage:
    """Tensors by name "A", "B", "HEAD" or key; None takes one out."""
    names = {"A": A, "B": B, "HEAD": HEAD}

    def damage(directory: Path) -> None:
        tensors = load_file(directory / ADAPTER_WEIGHTS)
        for name, tensor in changes.items():
            tensors[names.get(name, name)] = tensor  # type: ignore[assignment]
        kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
        save_file(kept, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    return damage


def _renamed(name: str, key: str = HEAD) -> Damage:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / ADAPTER_WEIGHTS)
        tensors[name] = tensors.pop(key)
        save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    return damage


def _cut(keep: int) -> Damage:
    return lambda d: (d / ADAPTER_WEIGHTS).write_bytes((d / ADAPTER_WEIGHTS).read_bytes()[:keep])


def _header(header: Any, length: int | None = None, body: bytes = b"") -> Damage:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    return lambda directory: (directory / ADAPTER_WEIGHTS).write_bytes(size + text + body)


def _entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {A: {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}


def _sparse(name: str) -> Damage:
    def damage(directory: Path) -> None:
        with (directory / name).open("wb") as file:
            file.truncate(60_000_000)

    return damage


def _pickle_instead(directory: Path) -> None:
    (directory / ADAPTER_WEIGHTS).rename(directory / ADAPTER_PICKLE)


def _directory_instead(directory: Path) -> None:
    (directory / ADAPTER_WEIGHTS).unlink()
    (directory / ADAPTER_WEIGHTS).mkdir()


def _in_subfolder(directory: Path) -> None:
    (directory / "sub").mkdir()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        (directory / name).rename(directory / "sub" / name)


DEEP = "[" * 100_000 + "]" * 100_000
MANY_DIGITS = 10**400
FILES: dict[str, Damage] = {
    # what is done to the files of a LoRA
    "empty file": _cut(0),
    "cut in the length": _cut(5),
    "cut in the header": _cut(200),
    "cut in the data": _cut(-1),
    "header of no bytes": _header(b"", 0),
    "header of 2^63 bytes": _header({}, 2**63),
    "header of 90 MB": _header({}, 90_000_000),
    "header that is no JSON": _header(b"{{{{{{{{"),
    "header that is a list": _header([]),
    "header nested too deep": _header(DEEP.encode()),
    "header not in UTF-8": _header(b'{"\xff\xfe": 1}'),
    "offsets beyond the end": _header(_entry("F32", [2, 6], 0, 48)),
    "offsets backwards": _header(_entry("F32", [2], 8, 0), body=b"8" * 8),
    "offsets below zero": _header(_entry("F32", [2], -8, 0), body=b"8" * 8),
    "a gap": _header(_entry("F32", [1], 4, 8), body=b"8" * 8),
    "shape not of these bytes": _header(_entry("F32", [9], 0, 8), body=b"8" * 8),
    "shape that overflows": _header(_entry("F32", [2**62, 8], 0, 8), body=b"8" * 8),
    "unknown dtype": _header(_entry("F31", [2], 0, 8), body=b"8" * 8),
    "metadata of another kind": _header({"__metadata__": 3}),
    "no tensor": _header({}),
    "a pickle": _pickle_instead,
    "a directory for a file": _directory_instead,
    "in a subfolder": _in_subfolder,
}
TENSORS: dict[str, Damage] = {
    "A of another rank": _tensors(A=torch.ones(3, 6)),
    "B of another rank": _tensors(B=torch.ones(5, 1)),
    "both of another rank": _tensors(A=torch.ones(3, 6), B=torch.ones(5, 3)),
    "A of three dimensions": _tensors(A=torch.ones(2, 6, 1)),
    "A without dimensions": _tensors(A=torch.tensor(1.0)),
    "a convolution": _tensors(A=torch.ones(2, 6, 3, 3)),
    "no inputs": _tensors(A=torch.ones(2, 0)),
    "no outputs": _tensors(B=torch.ones(0, 2)),
    "dead module": _tensors(A=torch.ones(0, 6), B=torch.ones(5, 0)),
    "A missing": _tensors(A=None),
    "B missing": _tensors(B=None),
    "NaN in A": _tensors(A=torch.full((2, 6), math.nan)),
    "one infinity in B": _tensors(B=torch.tensor([[1, math.inf]] * 5)),
    "minus infinity in B": _tensors(B=torch.tensor([[1, -math.inf]] * 5)),
    "too large for float32": _tensors(A=torch.full((2, 6), 1e300, dtype=torch.float64)),
    "integers": _tensors(A=torch.ones(2, 6, dtype=torch.int8)),
    "8-bit floats": _tensors(A=torch.ones(2, 6).to(torch.float8_e4m3fn)),
    "something else": _tensors(**{f"{P}other.weight": torch.ones(2)}),
}
NAMES: dict[str, Damage] = {
    f"{name!r:.40}": _renamed(name, key)
    for name, key in [
        ("classifier.weight", HEAD),
        ("model.base_model.classifier.weight", HEAD),
        ("", HEAD),
        (P, HEAD),
        (f"{P}classifier.../../etc/passwd", HEAD),
        (f"{P}classifier.a/b", HEAD),
        (f"{P}classifier.a\\b", HEAD),
        (f"{P}classifier.a\0b", HEAD),
        (f"{P}classifier.a\nerror: b", HEAD),
        (f"{P}classifier.\x1b[31mred", HEAD),
        (f"{P}classifier..weight", HEAD),
        (f"{P}.classifier.weight", HEAD),
        (f"{P}classifier.", HEAD),
        (f"{P}classifier. .weight", HEAD),
        (f"{P}classifier.{'x' * 5000}", HEAD),
        (f"{P}..lora_A.weight", A),
        (f"{P}lora_A.weight", A),
        (f"{P}enc.0.query.lora_A.default.weight", A),
        (f"{P}enc.0.query.lora_embedding_A", A),
        (f"{P}enc.0.query.lora_magnitude_vector", A),
        (f"{P}enc.0.query.base_layer.weight", A),
        (f"{P}enc.9.query.base_layer.weight", HEAD),
    ]
}
CONFIGS: dict[str, Damage] = {
    "empty": _raw_config(""),
    "cut": _raw_config('{"peft_type": "LO'),
    "a list": _raw_config("[]"),
    "a number": _raw_config("7"),
    "no type": _raw_config("{}"),
    "type of another kind": _config(peft_type=["LORA"]),
    "type of control characters": _config(peft_type="\x1b[31m\n\n\n\n"),
    "not in UTF-8": _raw_config(b'{"peft_type": "\xff"}'),
    "nested too deep": _raw_config(DEEP),
    "too large": _sparse(ADAPTER_CONFIG),
    "a key twice": _raw_config('{"peft_type": "LORA", "r": 2, "r": 3}'),
    "a pattern twice": _raw_config('{"peft_type": "LORA", "rank_pattern": {"q": 1, "q": 2}}'),
    "number of 5000 digits": _raw_config('{"peft_type":"LORA","r":' + "9" * 5000 + "}"),
    "huge r": _config(r=10**9),
    "r of 400 digits": _config(r=MANY_DIGITS),
    "r below zero": _config(r=-1),
    "r zero": _config(r=0),
    "r a fraction": _config(r=2.5),
    "r a text": _config(r="2"),
    "r a truth": _config(r=True),
    "r nothing": _config(r=None),
    "r not that of the file": _config(r=64),
    "alpha zero": _config(lora_alpha=0),
    "alpha below zero": _config(lora_alpha=-16),
    "alpha infinite": _config(lora_alpha=math.inf),
    "alpha NaN": _config(lora_alpha=math.nan),
    "alpha of 400 digits": _config(lora_alpha=MANY_DIGITS),
    "alpha a text": _config(lora_alpha="16"),
    "alpha that overflows": _config(lora_alpha=1e300),
    "alphas of zero": _config(alpha_pattern={"query": 0}),
    "ranks of zero": _config(rank_pattern={"query": 0}),
    "ranks a list": _config(rank_pattern=["query"]),
    "ranks as texts": _config(rank_pattern={"query": "2"}),
    "ranks in lists": _config(rank_pattern={"query": [True]}),
    "ranks not those of the file": _config(rank_pattern={"query": 1}),
    "no regular expression": _config(rank_pattern={"(": 2}),
    "half an expression": _config(alpha_pattern={"a)": 2}),
    "expression nested too deep": _config(alpha_pattern={"(" * 3000 + ")" * 3000: 2}),
    "expression of a megabyte": _config(alpha_pattern={"a?" * 500_000: 2}),
    "modules a text": _config(modules_to_save="classifier"),
    "modules of no name": _config(modules_to_save=[""]),
    "a million modules": _config(modules_to_save=["a"] * 1_000_000),
    "head of no module": _config(modules_to_save=None, task_type=None),
    "AdaLoRA's type": _config(peft_type="ADALORA"),
    "rsLoRA a text": _config(use_rslora="no"),
    "an empty variant": _config(arrow_config={}),
    "no targets": _config(target_modules=None),
    "empty targets": _config(target_modules=[]),
    "other targets": _config(target_modules=["query"]),
    "targets by an expression": _config(target_modules=".*query"),
    "targets by part of one": _config(target_modules="query|value"),
    "targets of no expression": _config(target_modules="*"),
    "other layers": _config(layers_to_transform=1),
    "other layers by pattern": _config(layers_to_transform=[0], layers_pattern="layers"),
    "layers a truth": _config(layers_to_transform=True),
    "a pattern without layers": _config(layers_pattern="enc"),
    "layers with an expression": _config(target_modules=".*", layers_to_transform=[0]),
    "excluded": _config(exclude_modules=["0.value"]),
    "excluded by an expression": _config(exclude_modules=r".*\.0\..*"),
    "stored in full, too": _config(modules_to_save=["enc", "classifier"]),
}
SORA_FILES: dict[str, Damage] = {
    "sora.json a list": _sora([]),
    "sora.json cut": _sora("{"),
    "sora.json nested too deep": _sora(DEEP),
    "sora.json too large": _sparse(SORA_FILE),
    "sora.json of the future": _sora({"format_version": 999}),
    "sora.json with a key twice": _sora('{"method": "a", "method": "b"}'),
    "ranks below zero": _sora({"ranks": {QUERY: -5}}),
    "ranks beyond all bounds": _sora({"ranks_start": {QUERY: 10**12}}),
    "ranks of impossible modules": _sora({"ranks": {"../../x": 1}}),
    "starts of impossible modules": _sora({"ranks_start": {"a\x1b[2J": 1}}),
    "labels a number": _sora({"labels": 3}),
    "lineage a text": _sora({"lineage": "x"}),
    "base a list": _sora({"base": ["x"]}),
}
E = f"{P}{QUERY}.lora_E"
ADALORA: dict[str, Damage] = {
    "E of another rank": _tensors(**{E: torch.ones(3, 1)}),
    "E lying": _tensors(**{E: torch.ones(1, 2)}),
    "E missing": _tensors(**{E: None}),
    "NaN in E": _tensors(**{E: torch.full((2, 1), math.nan)}),
    "rank not that of the pattern": _config(rank_pattern={f"{QUERY}.lora_E": [True, False, False]}),
    "no pattern": _config(rank_pattern=None),
    "pattern of numbers": _config(rank_pattern={f"{QUERY}.lora_E": [1, 1, 0]}),
    "pattern of ranks": _config(rank_pattern={f"{QUERY}.lora_E": 2}),
    "pattern a list": _config(rank_pattern=[[True]]),
    "pattern of another length": _config(rank_pattern={"a.lora_E": [True]}),
    "pattern of no module": _config(rank_pattern={"query": [True] * 3}),
    "pattern twice": _config(
        rank_pattern={f"{QUERY}.lora_E": [True] * 3, f"{QUERY}.lora_E.x": [True] * 3}
    ),
    "init_r a text": _config(init_r="3"),
    "init_r huge": _config(init_r=10**9, rank_pattern=None),
    "init_r zero": _config(init_r=0, rank_pattern=None),
    "alpha zero": _config(lora_alpha=0),
    "divisor zero": _tensors(**{f"{P}{QUERY}.ranknum": torch.zeros(1)}),
    "divisor NaN": _tensors(**{f"{P}{QUERY}.ranknum": torch.tensor([math.nan])}),
    "two divisors": _tensors(**{f"{P}{QUERY}.ranknum": torch.ones(2)}),
    "divisor of nothing": _tensors(**{f"{P}other.ranknum": torch.ones(1)}),
    "dead module of absurd size": _tensors(
        **{
            f"{P}{VALUE}.lora_A": torch.zeros(0, 2**40),
            f"{P}{VALUE}.lora_B": torch.zeros(2**40, 0),
        }
    ),
    "LoRA's type": _config(peft_type="LORA", rank_pattern={}),
}
CASES = [
    pytest.param(make, damage, id=f"{kind}-{name}")
    for kind, make, table in [
        ("file", _lora, FILES),
        ("tensors", _lora, TENSORS),
        ("names", _lora, NAMES),
        ("config", _lora, CONFIGS),
        ("sora", _lora, SORA_FILES),
        ("adalora", _adalora, ADALORA),
    ]
    for name, damage in table.items()
]


@pytest.mark.parametrize("make", [_lora, _adalora])
def test_without_damage_all_is_well(tmp_path: Path, make: Damage) -> None:
    directory = make(tmp_path / "a")
    assert run(["inspect", str(directory)]) == 0
    for command in ("export", "prune"):
        assert run([command, str(directory), "-o", str(tmp_path / command)]) == 0
        assert run(["inspect", str(tmp_path / command)]) == 0


@pytest.mark.parametrize(("make", "damage"), CASES)
def test_damage_is_refused(
    tmp_path: Path,
    make: Callable[[Path], Path],
    damage: Damage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = make(tmp_path / "a")
    damage(directory)
    before = sorted(tmp_path.rglob("*"))
    output = ["-o", tmp_path / "out"]
    commands = (["inspect"], ["export", *output], ["prune", *output])
    told("\n".join({error_text(capsys, *words, directory): None for words in commands}))
    assert sorted(tmp_path.rglob("*")) == before


def test_head_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only looks at the factors need not read the head."""
    directory = _lora(tmp_path / "a")
    _tensors(HEAD=torch.full((3, 5), math.nan))(directory)
    for command in ("export", "prune"):
        refused(capsys, command, str(directory), "-o", str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(e|e|e|e)*(n|n|n)*(c|c)*([^z]|.)*([^z]|.)*([^z]|.)*z",
        ".*.*.*.*.*.*.*.*.*.*.*.*.*.*.*z",
        "(.|.)(.|.)" * 50 + "z",
    ],
)
def test_expressions_that_take_forever(
    tmp_path: Path,
    pattern: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sora_cli.adapter.peft.patterns.TIME_LIMIT", 0.5)
    directory = _lora(tmp_path / "a")
    long = ".".join(["a" * 60] * 3)
    for half in "AB":
        key = f"{P}{QUERY}.lora_{half}.weight"
        _renamed(f"{P}{long}!.lora_{half}.weight", key)(directory)
    _config(alpha_pattern={pattern: 3}, target_modules=["value", f"{long}!"])(directory)
    refused(capsys, "export", str(directory), "-o", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_many_patterns_that_match_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = _lora(tmp_path / "a")
    _config(rank_pattern={f"m{i}.x": 2 for i in range(20_000)})(directory)
    assert run(["export", str(directory), "-o", str(tmp_path / "out")]) == 0
    told(capsys.readouterr().err)


def test_work_grows_with_the_patterns_and_no_faster(tmp_path: Path) -> None:
    def export(patterns: int) -> int:
        directory = _lora(tmp_path / f"{patterns}")
        _config(rank_pattern={f"m{patterns}.{i}": 2 for i in range(patterns)})(directory)
        words = ["export", str(directory), "-o", str(tmp_path / f"{patterns}-out")]
        return calls_of(lambda: run(words))

    few, some, many = export(600), export(900), export(1200)  # more than `re` remembers
    assert many - some < 1.5 * (some - few)


def test_odd_but_harmless_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = _lora(tmp_path / "a")
    changes = {"rank_pattern": {"quary": 9}, "alpha_pattern": {"query": 8, r"enc\.0\..*": 16}}
    _config(**changes, modules_to_save=["classifier", "score", "pooler"])(directory)
    assert run(["export", str(directory), "-o", str(tmp_path / "out")]) == 0
    told(capsys.readouterr().err)


def test_links_are_followed(tmp_path: Path) -> None:
    real = _lora(tmp_path / "real")
    (tmp_path / "files").mkdir()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        (tmp_path / "files" / name).symlink_to(real / name)
    (tmp_path / "link").symlink_to(real, target_is_directory=True)
    for name in ("files", "link"):
        assert run(["export", str(tmp_path / name), "-o", str(tmp_path / f"{name}-out")]) == 0
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert run(["inspect", str(tmp_path / "loop")]) == 2


def test_a_name_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "export", "x" * 5000, "-o", "out", hide="x{9,}")


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on file sizes")
@pytest.mark.parametrize("command", ["export", "prune"])
def test_disk_that_fills_up(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on file sizes stops the write in the middle, as a full disk does."""
    directory = _lora(tmp_path / "a")
    with files_of_at_most(300):
        refused(capsys, command, directory, "-o", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("function", ["write_tensors", "write_json", "write_sora_file"])
def test_full_disk(
    tmp_path: Path,
    function: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    directory = _lora(tmp_path / "a")
    monkeypatch.setattr(f"sora_cli.adapter.directory.{function}", full)
    refused(capsys, "export", str(directory), "-o", str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
