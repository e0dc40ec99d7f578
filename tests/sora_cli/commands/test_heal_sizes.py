"""`sora prune --max-drop --heal`: sizes that are cut, trained on and tested, the largest first."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.directory import read_adapter
from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_errors import error_text
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, pair_rows, signal_at, train, write_recipe, write_rows


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its directory."""
    folder = tmp_path_factory.mktemp("origin")
    recipe = write_recipe(
        folder, tiny_bert(num_labels=2), method={"threshold": 0.0}, training={"max_steps": 8}
    )
    write_rows(folder / "validation.jsonl", pair_rows(60, seed=1))
    train(recipe)
    return folder / "out"


@pytest.fixture(scope="module")
def done(origin: Path) -> Path:
    """Three sizes that passed."""
    out = origin.parent / "done"
    assert run(_words(origin, out, "40pt")) == 0
    return out


def _words(origin: Path, out: Path, drop: str) -> list[str]:
    return ["prune", str(origin), "-o", str(out), "--max-drop", drop, "--heal", "2", "--no-verify"]


def _record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "sizes.json").read_text())
    return found


def test_the_smallest_size_that_passed_becomes_the_run(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(_words(origin, tmp_path / "out", "40pt")) == 0
    record = _record(tmp_path / "out")
    assert (record["certified"], record["max_drop"], record["metric"]) == (True, 0.4, "accuracy")
    whole, *sizes = record["sizes"]
    assert len(sizes) == 3
    for share, size in zip((2, 4, 8), sizes, strict=True):
        assert 0 < size["parameters"] <= whole["parameters"] // share
        assert size["bound"]["upper"] <= 0.4
    adapter = read_adapter(tmp_path / "out")
    assert sum(adapter.ranks().values()) == sizes[-1]["components"]
    report = read_report(tmp_path / "out")
    assert report is not None
    assert report.start is not None
    assert report.recipe["training"]["evaluate"] == "no"  # the rows that test choose nothing
    assert report.metrics["validation"]["accuracy"] == pytest.approx(sizes[-1]["score"])
    assert "certified: " in capsys.readouterr().out


@pytest.mark.long
def test_it_is_resumed_where_it_was_interrupted(
    origin: Path,
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = _words(origin, tmp_path / "again", "40pt")
    monkeypatch.setattr("sys.argv", ["sora", *again])
    with monkeypatch.context() as patched:
        signal_at(patched, 1)
        assert run(again) == 128 + signal.SIGTERM
    assert f"sora {' '.join(again)} --resume" in capsys.readouterr().err
    assert "holds sizes already" in error_text(capsys, *again)
    assert run([*again, "--resume"]) == 0
    assert files_of(tmp_path / "again" / "adapter") == files_of(done / "adapter")
    assert _record(tmp_path / "again") == _record(done)


def test_the_first_failure_ends_it(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(_words(origin, tmp_path / "out", "0.02")) in (0, 3)
    record = _record(tmp_path / "out")
    assert len(record["sizes"]) == 2
    assert len([*(tmp_path / "out" / "sizes").iterdir()]) == 1
    assert not record["sizes"][1]["passed"]
    assert record["bound"] is None or not record["certified"]
    out = capsys.readouterr().out
    assert "the 60 rows can certify a drop of" in out
