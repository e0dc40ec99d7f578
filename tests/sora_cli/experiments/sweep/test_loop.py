"""The loop: order, waiting for other runs, failures, retries, what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import LABELS_WANTED, NO_VERDICT
from sora_cli.core.interruption import Interrupted
from sora_cli.experiments.sweep import loop as loop_module
from sora_cli.experiments.sweep.engine import LOST, Job
from sora_cli.experiments.sweep.loop import Loop, Settings
from sora_cli.experiments.sweep.plan import plan_sweep
from sora_cli.experiments.sweep.record import FILE_NAME, SweepRecord
from sora_cli.experiments.sweep.source import PlanSource, Source
from sora_cli.report import read_report
from tests.present import present
from tests.sora_cli.experiments.sweep.support import (
    ScriptedEngine,
    finish,
    run_directory,
    write_sweep,
)
from tests.sora_cli.experiments.sweep.test_plan import CASES


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_PAUSE", 0)


def carry_out(
    source: Source,
    script: Callable[[Job], int | None],
    folder: Path,
    *,
    retries: int = 2,
    place: str | None = None,
) -> ScriptedEngine:
    engine = ScriptedEngine(script, place=place)
    folder.mkdir(parents=True, exist_ok=True)
    record = SweepRecord(file="f", command=["sora"], kind="train", started="", engine="scripted")
    settings = Settings("train", 1, retries)
    Loop(source, engine, settings, folder, record, lambda _: None, lambda: None).run()
    assert engine.closed
    return engine


def source_of(tmp_path: Path, **blocks: Any) -> PlanSource:
    path = write_sweep(tmp_path, **blocks)
    return PlanSource(plan_sweep(path, [f"output.dir={tmp_path / 'out'}"]))


def good(job: Job) -> int:
    finish(job, method="sora" if "sora" in job.name else "lora", ranks=3)
    return 0


def states(source: Source) -> list[str]:
    return [record.state for record in source.records.values()]


def test_runs_side_by_side_and_skips_what_is_finished(tmp_path: Path) -> None:
    source = source_of(tmp_path, grid={"training.seed": [0, 1, 2]})
    engine = carry_out(source, good, tmp_path / "out")
    assert engine.most == 2
    assert states(source) == ["finished"] * 3
    assert engine.started[0].arguments[:2] == ("train", str(tmp_path / "base.yaml"))
    assert engine.started[0].arguments[-1] == "--resume"
    again = source_of(tmp_path, grid={"training.seed": [0, 1, 2, 3]})
    assert [record.before for record in again.records.values()] == [True, True, True, False]
    assert [job.name for job in carry_out(again, good, tmp_path / "out").started] == ["s3"]


def test_a_value_is_taken_from_the_finished_run(tmp_path: Path) -> None:
    blocks = {"grid": {"training.seed": [0, 1]}, "cases": CASES}
    source = source_of(tmp_path, **blocks)
    engine = carry_out(source, good, tmp_path / "out")
    report = present(read_report(run_directory(engine.started[-1])))
    assert report.recipe["method"]["target_r"] == 3
    assert report.recipe["output"]["derived"] == ["method.target_r"]
    again = source_of(tmp_path, **blocks)
    assert all(record.before for record in again.records.values())


def test_a_failure_stops_neither_the_rest_nor_unhurt_cases(tmp_path: Path) -> None:
    source = source_of(tmp_path, grid={"training.seed": [0, 1]}, cases=CASES)

    def script(job: Job) -> int:
        if job.name == "sora-s0":
            job.log.parent.mkdir(exist_ok=True)
            job.log.write_text("training ...\nerror: there is no model\n  at nowhere\n")
            return 2
        return good(job)

    engine = carry_out(source, script, tmp_path / "out")
    assert states(source) == ["failed", "blocked", "finished", "finished"]
    assert source.records["sora-s0"].error == "there is no model"
    assert source.records["adalora-s0"].error == "it needs sora-s0: failed"
    assert [job.name for job in engine.started].count("sora-s0") == 1
    saved = json.loads((tmp_path / "out" / FILE_NAME).read_text())
    assert [run["state"] for run in saved["runs"]] == states(source)
    assert saved["finished"]


def test_no_verdict_is_no_failure(tmp_path: Path) -> None:
    source = source_of(tmp_path, grid={"training.seed": [0]})
    carry_out(source, lambda job: good(job) or NO_VERDICT, tmp_path / "out")
    assert states(source) == ["finished"]


@pytest.mark.parametrize("code", [LOST, -15, 143])
def test_a_killed_run_is_started_again(tmp_path: Path, code: int) -> None:
    codes = [code, code, 0]
    source = source_of(tmp_path, grid={"training.seed": [0]})
    engine = carry_out(source, lambda job: codes.pop(0) or good(job), tmp_path / "out")
    assert states(source) == ["finished"]
    assert len(engine.started) == source.records["s0"].attempts == 3


@pytest.mark.parametrize(("place", "words"), [(None, ""), ("node a", ", now on node a")])
def test_it_is_given_up_in_the_end(tmp_path: Path, place: str | None, words: str) -> None:
    source = source_of(tmp_path, grid={"training.seed": [0]})
    engine = carry_out(source, lambda _: LOST, tmp_path / "out", retries=1, place=place)
    assert states(source) == ["failed"]
    assert source.records["s0"].error == f"killed 2 times (SIGKILL){words}"
    assert len(engine.started) == 2


def test_the_machine_of_a_lost_run_is_forgotten_when_it_goes_on(tmp_path: Path) -> None:
    codes = [LOST, 0]
    source = source_of(tmp_path, grid={"training.seed": [0]})
    carry_out(source, lambda job: codes.pop(0) or good(job), tmp_path / "out", place="node a")
    assert states(source) == ["finished"]
    assert source.records["s0"].error is None


def test_an_interruption_is_recorded(tmp_path: Path) -> None:
    source = source_of(tmp_path, grid={"training.seed": [0, 1, 2]})

    def script(job: Job) -> int | None:
        if job.name == "s1":
            raise Interrupted(15)
        return None

    with pytest.raises(Interrupted):
        carry_out(source, script, tmp_path / "out")
    assert states(source) == ["interrupted", "interrupted", "waiting"]


def test_another_run_in_its_place_is_refused(tmp_path: Path) -> None:
    carry_out(source_of(tmp_path, grid={"training.seed": [0]}), good, tmp_path / "out")
    with pytest.raises(SoraError, match=r"holds another run: there training\.epochs is 3"):
        source_of(tmp_path, grid={"training.seed": [0]}, set={"training.epochs": 4})


def test_a_run_that_waits_for_labels_is_unfinished_and_started_by_the_next_sweep(
    tmp_path: Path,
) -> None:
    source = source_of(tmp_path, grid={"training.seed": [0, 1]}, cases=CASES)

    def script(job: Job) -> int:
        return LABELS_WANTED if job.name == "sora-s0" else good(job)

    carry_out(source, script, tmp_path / "out")
    assert states(source) == ["unfinished", "unfinished", "finished", "finished"]
    assert source.records["adalora-s0"].error == "it needs sora-s0: unfinished"
    again = source_of(tmp_path, grid={"training.seed": [0, 1]}, cases=CASES)
    engine = carry_out(again, good, tmp_path / "out")
    assert [job.name for job in engine.started] == ["sora-s0", "adalora-s0"]
    assert states(again) == ["finished"] * 4
