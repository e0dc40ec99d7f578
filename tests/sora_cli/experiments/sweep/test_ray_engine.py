"""Stopping what a cluster has not begun yet; real ones run in `commands/test_sweep.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sora_cli.experiments.sweep import ray_engine
from sora_cli.experiments.sweep.engine import Job


class _Ray:
    """A cluster that takes tasks and begins none; it notes what it found when they were to end."""

    def __init__(self, log: Path) -> None:
        self.log, self.asked_to_stop = log, False

    def init(self, **_options: Any) -> None: ...

    def shutdown(self) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4}

    def remote(self, _function: Any) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: object()))

    def wait(self, tasks: list[Any], **_options: Any) -> tuple[list[Any], list[Any]]:
        self.asked_to_stop = self.log.with_name("run.log.stop").exists()
        return [], tasks


def test_a_task_that_has_not_begun_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder of logs is made where it begins, which is not yet."""
    job = Job("run", ("train", "quickstart"), tmp_path / "logs" / "run.log", cpus=1)
    ray = _Ray(job.log)
    monkeypatch.setattr(ray_engine, "_ray", lambda: ray)
    engine = ray_engine.RayEngine(None, slots=None)
    engine.start(job)
    engine.close()
    assert ray.asked_to_stop
    assert list(job.log.parent.iterdir()) == []
