"""`sora list`: what each record says, what is under what, and what is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.digest import result_digest
from sora_cli.app import run
from sora_cli.core.lock import is_locked, locked
from sora_cli.experiments.sweep.record import RunRecord, SweepRecord
from sora_cli.search.record import AutoRecord
from tests.helpers_reports import KINDS, write_report, write_study
from tests.sora_cli.experiments.report.pages import full_run, write_path
from tests.sora_cli.search.test_certificate import certificate

Output = pytest.CaptureFixture[str]
HALF = dict.fromkeys(KINDS, 4)


def _listed(place: Path, capsys: Output, *words: str) -> dict[str, dict[str, Any]]:
    """The entries of `sora list --json`, by directory below the place."""
    assert run(["list", str(place), "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    return {str(Path(entry["directory"]).relative_to(place)): entry for entry in found}


def _checkpoint(directory: Path, step: int, *, complete: bool = True) -> None:
    folder = directory / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / ("complete.json" if complete else "run.json")).write_text("{}")


def test_a_finished_run(tmp_path: Path, capsys: Output) -> None:
    write_report(tmp_path / "a" / "r", metric=0.75, ranks=HALF, layers=1, seed=3)
    entry = _listed(tmp_path, capsys)["a/r"]
    assert (entry["status"], entry["method"], entry["task"], entry["seed"]) == (
        "finished", "lora", "rte", 3)  # fmt: skip
    assert (entry["metric"], entry["split"], entry["score"]) == ("accuracy", "validation", 0.75)
    assert (entry["components"], entry["components_start"]) == (24, 48)
    assert (entry["parameters"], entry["parameters_start"]) == (27648, 55296)
    assert entry["seconds"] == 72.5
    assert not entry["resumable"]
    assert run(["list", str(tmp_path)]) == 0
    (line,) = (li for li in capsys.readouterr().out.splitlines() if "a/r" in li)
    for shown in ("finished", "lora", "accuracy 0.7500", "24/48", "27,648", "1 min 12 s",
                  "2026-01-01 00:03"):  # fmt: skip
        assert shown in line


def test_how_far_a_run_came(tmp_path: Path, capsys: Output) -> None:
    for status in ("interrupted", "failed", "running"):
        write_report(tmp_path / status, status=status, more={"error": "why"})  # type: ignore[arg-type]
    _checkpoint(tmp_path / "interrupted", 20)
    _checkpoint(tmp_path / "interrupted", 9)
    _checkpoint(tmp_path / "interrupted", 30, complete=False)
    _checkpoint(tmp_path / "running", 5)
    with locked(tmp_path / "running"):
        found = _listed(tmp_path, capsys)
        assert found["running"]["status"] == "running"
        assert not found["running"]["resumable"]
    assert (found["interrupted"]["resumable"], found["interrupted"]["step"]) == (True, 20)
    assert (found["failed"]["resumable"], found["failed"]["notes"]) == (False, ["why"])
    killed = _listed(tmp_path, capsys)["running"]
    assert (killed["status"], killed["step"]) == ("interrupted", 5)
    assert killed["notes"] == ["its process is gone"]
    with locked(tmp_path / "interrupted"):  # a resume that has not written its report yet
        assert _listed(tmp_path, capsys)["interrupted"]["status"] == "running"


def test_the_lock_is_only_looked_at(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    (tmp_path / ".lock").write_text("left by a kill")
    assert not is_locked(tmp_path)


def test_an_adapter_that_changed(tmp_path: Path, capsys: Output) -> None:
    place = full_run(tmp_path / "r")
    digest = result_digest(place / "adapter")
    write_report(tmp_path / "r", more={"digests": {"adapter": digest}})
    assert _listed(tmp_path, capsys)["r"]["changed"] is False
    weights = place / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    os.utime(weights, (0, 0))  # whatever the clock of a copy said
    entry = _listed(tmp_path, capsys)["r"]
    assert entry["changed"] is True
    assert entry["notes"] == ["its adapter has changed since its report"]
    late = {"digests": {"adapter": digest}, "finished": "2999-01-01T00:00:00+00:00"}
    write_report(tmp_path / "r", more=late)
    assert _listed(tmp_path, capsys)["r"]["changed"] is False  # older than its report: not read
    weights.unlink()
    weights.with_name("adapter_config.json").unlink()
    weights.parent.rmdir()
    entry = _listed(tmp_path, capsys)["r"]
    assert (entry["changed"], entry["notes"]) == (None, ["adapter/ is gone"])


def test_a_path_and_its_stages(tmp_path: Path, capsys: Output) -> None:
    write_path(tmp_path / "p", finished=1)
    write_report(tmp_path / "p" / "stages" / "00", seed=7)
    write_report(tmp_path / "p" / "stages" / "01", status="running")
    with locked(tmp_path / "p"):
        found = _listed(tmp_path, capsys)
    assert [entry["kind"] for entry in found.values()] == ["path", "run", "run"]
    assert (found["p"]["status"], found["p"]["resumable"]) == ("running", False)
    assert found["p"]["notes"] == ["1 of 2 stages finished"]
    assert {e["parent"] for e in found.values()} == {None, str(tmp_path / "p")}
    assert found["p/stages/01"]["status"] == "running"  # the path's process has the lock
    assert found["p/stages/00"]["seed"] == found["p"]["seed"]
    killed = _listed(tmp_path, capsys)
    assert killed["p"]["resumable"]
    assert {killed[name]["status"] for name in ("p", "p/stages/01")} == {"interrupted"}
    assert run(["list", str(tmp_path)]) == 0
    assert "  stages/00" in capsys.readouterr().out


def test_a_search(tmp_path: Path, capsys: Output) -> None:
    write_report(tmp_path / "a", metric=0.7)
    write_report(tmp_path / "a" / "sizes" / "full")
    record = AutoRecord(name="rte", recipe={}, status="completed")
    (tmp_path / "a" / "auto.json").write_text(record.model_dump_json())
    (tmp_path / "a" / "certificate.json").write_text(certificate().model_dump_json())
    found = _listed(tmp_path, capsys)
    assert list(found) == ["a", "a/sizes/full"]
    assert (found["a"]["kind"], found["a"]["score"], found["a"]["certified"]) == ("auto", 0.7, True)
    assert found["a"]["notes"] == ["certified"]
    record.status = "interrupted"
    (tmp_path / "a" / "auto.json").write_text(record.model_dump_json())
    entry = _listed(tmp_path, capsys)["a"]
    assert (entry["score"], entry["resumable"]) == (None, True)
    assert entry["notes"] == ["0 sizes named, 0 tested"]


def test_a_sweep(tmp_path: Path, capsys: Output) -> None:
    states = {"s9": "finished", "s10": "failed", "bad": "failed", "late": "waiting"}
    runs = [RunRecord(name=n, arguments=[], state=s, error=n) for n, s in states.items()]  # type: ignore[arg-type]
    record = SweepRecord(file="f/glue.yaml", command=[], kind="train", started="x", engine="local",
                         runs=runs)  # fmt: skip
    record.save(tmp_path / "w")
    write_report(tmp_path / "w" / "s9")
    write_report(tmp_path / "w" / "s10", status="failed")
    found = _listed(tmp_path, capsys)
    assert list(found) == ["w", "w/s9", "w/s10", "w/bad"]
    assert (found["w"]["status"], found["w"]["name"]) == ("interrupted", "glue")
    assert found["w"]["notes"] == ["1 of 4 runs finished"]
    assert (found["w/bad"]["status"], found["w/bad"]["notes"]) == ("failed", ["bad"])
    record.finished, record.runs = "y", runs[:3]
    record.save(tmp_path / "w")
    assert _listed(tmp_path, capsys)["w"]["status"] == "failed"
    record.runs = runs[:1]
    record.save(tmp_path / "w")
    assert _listed(tmp_path, capsys)["w"]["status"] == "finished"


@pytest.mark.parametrize("name", ["report.json", "path.json", "auto.json", "sweep.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 3}', '{"status": "x"}', "\x00"])
def test_damaged_records(name: str, text: str, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text(text)
    entry = _listed(tmp_path, capsys)["r"]
    assert entry["status"] == "damaged"
    assert "is damaged or of another version" in entry["notes"][0]
    assert run(["list", str(tmp_path)]) == 0


def test_orders_and_choices(tmp_path: Path, capsys: Output) -> None:
    write_study(tmp_path, tasks=("rte",), seeds=(0,))
    write_report(tmp_path / "worst", metric=0.1, method="adalora", task="cola", parameters=9,
                 seconds=1.0)  # fmt: skip
    write_report(tmp_path / "zz", status="failed")
    names = list(_listed(tmp_path, capsys))
    assert names == sorted(names)
    for key, place, name in (
        ("score", -1, "zz"), ("parameters", 0, "worst"), ("parameters", -1, "zz"),
        ("time", 0, "worst"), ("status", 0, "zz"),
    ):  # fmt: skip
        found = list(_listed(tmp_path, capsys, "--sort", key))
        assert (sorted(found), found[place]) == (names, name)
    scores = [e["score"] for e in _listed(tmp_path, capsys, "--sort", "score").values()][:-1]
    assert scores == sorted(scores, reverse=True)
    assert list(_listed(tmp_path, capsys, "--status", "failed")) == ["zz"]
    assert list(_listed(tmp_path, capsys, "--method", "adalora")) == ["worst"]
    assert list(_listed(tmp_path, capsys, "--task", "cola", "--method", "adalora")) == ["worst"]
    assert _listed(tmp_path, capsys, "--task", "cola", "--method", "lora") == {}
    assert f"{tmp_path} holds no such run" in _err(["list", str(tmp_path), "--task", "x"], capsys)


def _err(words: list[str], capsys: Output) -> str:
    assert run(words) == 0
    return capsys.readouterr().err


def test_what_is_chosen_stands_under_its_parent(tmp_path: Path, capsys: Output) -> None:
    write_path(tmp_path / "p")
    write_report(tmp_path / "p" / "stages" / "00", status="failed")
    write_report(tmp_path / "p" / "stages" / "01")
    assert list(_listed(tmp_path, capsys, "--status", "failed")) == ["p", "p/stages/00"]


def test_what_is_passed_over(tmp_path: Path, capsys: Output) -> None:
    assert "holds no run" in _err(["list", str(tmp_path)], capsys)
    write_report(tmp_path / ".hidden" / "r")
    write_report(tmp_path / "r")
    write_report(tmp_path / "r" / "adapter")
    (tmp_path / "link").symlink_to(tmp_path / "r")
    assert list(_listed(tmp_path, capsys)) == ["r"]
    assert list(_listed(tmp_path / "r", capsys)) == ["."]
