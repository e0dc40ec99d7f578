"""The processes of this machine's engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.experiments.sweep import engine
from sora_cli.experiments.sweep.engine import Job, LocalEngine


@pytest.mark.parametrize(("asked", "seen"), [(None, "2"), (1.0, "2"), (0.0, "")])
def test_a_run_sees_the_gpus_that_it_asks_for(
    monkeypatch: pytest.MonkeyPatch, asked: float | None, seen: str
) -> None:
    started: dict[str, str] = {}
    monkeypatch.setattr(engine, "start_process", lambda _, variables: started.update(variables))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    job = Job("run", ("train", "quickstart"), Path("run.log"), cpus=1, gpus=asked)
    LocalEngine(2, ("2", "3")).start(job)
    assert started["CUDA_VISIBLE_DEVICES"] == seen
