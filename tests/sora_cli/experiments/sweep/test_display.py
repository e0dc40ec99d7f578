"""What a person watches, and how a machine is divided."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.core.console import duration
from sora_cli.experiments.sweep import engines
from sora_cli.experiments.sweep.display import Display, steps_of
from sora_cli.experiments.sweep.record import RunRecord

BAR = "\rtraining:  50%|=====     | {}/60 [00:06<00:06,  9.60it/s, loss=0.6, components=49]"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(3.4, "3 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_steps_of_the_last_process(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    assert steps_of(log) == (0, 0)
    log.write_text(f"\n$ sora train a\n{BAR.format(10)}{BAR.format(30)}\n")
    assert steps_of(log) == (30, 60)
    log.write_text(log.read_text() + "\n$ sora train a\nimport ...\n")
    assert steps_of(log) == (0, 0)


def test_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = {name: RunRecord(name=name, arguments=[]) for name in ("a", "b")}
    with Display(records, lambda name: tmp_path / f"{name}.log") as display:
        records["a"].state, records["a"].attempts = "running", 2
        display.tell(records["a"])
        records["b"].seconds = 9.0
        display.tell(records["b"])
        records["b"].error = "lost on node a (gpu-3, 10.0.0.3)"
        display.tell(records["b"])
        records["a"].state, records["a"].seconds = "failed", 61.0
        records["a"].error = "no room"
        display.tell(records["a"])
        display.show()
    assert capsys.readouterr().err.splitlines() == [
        "[0/2]  a: started (start 2)",
        "[0/2]  b: was killed after 9 s; starting it again",
        "[0/2]  b: lost on node a (gpu-3, 10.0.0.3) after 9 s; it goes on where there is room",
        "[1/2]  a: failed in 1 min 01 s: no room",
        f"         see {tmp_path / 'a.log'}",
    ]


@pytest.mark.parametrize(
    ("cpus", "gpus", "runs", "jobs", "threads", "expected"),
    [
        (2, (), 10, None, None, (2, 1)),
        (64, (), 10, None, None, (4, 16)),
        (64, (), 1, None, None, (1, 64)),
        (8, (), 10, 3, None, (3, 2)),
        (8, (), 10, None, 4, (2, 4)),
        (16, ("0", "1"), 10, None, None, (2, 8)),
        (1, (), 10, None, 2, (1, 2)),
    ],
)
def test_a_machine_divided(
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    gpus: tuple[str, ...],
    runs: int,
    jobs: int | None,
    threads: int | None,
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(engines, "available_cpus", lambda: cpus)
    monkeypatch.setattr(engines, "visible_gpus", lambda: gpus)
    assert engines.divide(runs, jobs, threads) == expected


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert engines.visible_gpus() == ("2", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert engines.visible_gpus() == ()
