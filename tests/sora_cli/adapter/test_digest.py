"""A report knows its result, and every command that finds another there says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.digest import former_results, result_digest, result_remarks
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.app import run
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from sora_cli.report import FILE_NAME, read_report
from tests.helpers_errors import refusal
from tests.helpers_reports import write_report
from tests.present import present

UNKNOWN = "so it cannot be compared with the run's report"
SAYS = "adapter has changed since the run: its report describes another adapter"


def _adapter(rank: int) -> Adapter:
    layers = {"layer.0.query": LowRankFactors(torch.rand(rank, 8), torch.rand(8, rank))}
    return Adapter.of(layers, {}, (), None, BaseReference("base", "base"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A run's directory with its adapter, which its report knows."""
    write_report(tmp_path / "run")
    write_adapter(tmp_path / "run" / "adapter", _adapter(3))
    file = tmp_path / "run" / FILE_NAME
    digest = result_digest(tmp_path / "run" / "adapter")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"digests": {"adapter": digest}}))
    return tmp_path / "run"


def test_who_finds_another_adapter_says_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_, new = str(place), str(tmp_path / "new")
    commands = [
        ["inspect", run_],
        ["inspect", run_, str(place / "adapter")],
        ["compare", run_],
        ["prune", run_, "-o", new, "--rank", "2"],
        ["export", run_, "-o", new, "--no-verify", "--force"],
        ["merge", run_, "-o", new, "--force"],
        ["verify", run_],
    ]
    for words in commands:
        run(words)
        assert "since the run" not in "".join(capsys.readouterr())
    write_adapter(place / "adapter", _adapter(2), force=True)
    for words in commands:
        run([*words, "--force"] if "-o" in words and "--force" not in words else words)
        told = [line for line in capsys.readouterr().err.splitlines() if "since the run" in line]
        assert told, words
        assert all(line.endswith(SAYS) for line in told)


def test_what_counts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "adapter"
    config, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    first = json.loads(config.read_text())
    config.write_text(json.dumps(first | {"base_model_name_or_path": "moved"}))
    (folder / "README.md").write_text("x")
    assert result_remarks(folder) == []
    config.write_text(json.dumps(first | {"lora_alpha": 99}))
    assert result_remarks(folder) == [f"{place}/{SAYS}"]
    config.write_text(json.dumps(first))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of one number
    weights.write_bytes(content)
    monkeypatch.chdir(folder)
    assert len(result_remarks(Path())) == 1
    weights.unlink()
    assert result_remarks(folder) == [f"{folder} cannot be read, {UNKNOWN}"]


def test_reports_without_a_digest_say_nothing(place: Path) -> None:
    write_report(place)
    report = present(read_report(place))
    assert report.digests == {}
    assert result_remarks(place / "adapter") == []


def test_a_former_runs_result_is_refused_until_the_run_has_finished(place: Path) -> None:
    """Only the result that was there when the run began: its own may be read after a failure."""
    file, adapter = place / FILE_NAME, place / "adapter"
    begun = json.loads(file.read_text()) | {"status": "interrupted", "digests": {}}
    file.write_text(json.dumps(begun | {"former": former_results(place)}))
    with refusal():
        result_remarks(adapter)
    write_adapter(adapter, _adapter(2), force=True)
    assert result_remarks(adapter) == []
