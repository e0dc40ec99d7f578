"""Searches, with runs that are made up in an instant; the study is Optuna's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.sweep.engine import Job
from sora_cli.experiments.sweep.plan import plan_sweep
from sora_cli.experiments.sweep.search import SearchSource
from sora_cli.recipe.load import load_recipe
from tests.present import present
from tests.sora_cli.experiments.sweep.support import finish, write_sweep
from tests.sora_cli.experiments.sweep.test_loop import carry_out, no_pauses, states  # noqa: F401

SPACE = {
    "method.threshold": {"low": 1e-4, "high": 1e-1, "log": True},
    "method.r_max": {"low": 2, "high": 8},
}


def source_of(tmp_path: Path, **search: Any) -> SearchSource:
    tmp_path.joinpath("out").mkdir(exist_ok=True)
    path = write_sweep(tmp_path, search={"space": SPACE, **search})
    return SearchSource(plan_sweep(path, [f"output.dir={tmp_path / 'out'}"]))


def quality(job: Job) -> float:
    """Best at a threshold of 3e-3."""
    words = [word for word in job.arguments[2:] if not word.startswith("--")]
    options = load_recipe(job.arguments[1], words).resolved()["method"]
    return 0.9 - 0.1 * abs(math.log10(options["threshold"]) + 2.5)


def scored(job: Job) -> int:
    finish(job, method="sora", metric=quality(job), ranks=round(10 * quality(job)))
    return 0


@pytest.mark.versions
def test_it_finds_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_of(tmp_path, trials=25)
    engine = carry_out(source, scored, tmp_path / "out")
    assert states(source) == ["finished"] * 25
    source.conclude()
    out = capsys.readouterr().out.splitlines()
    best = max(engine.started, key=quality)
    assert best.name in next(line for line in out if "trial-" in line)
    assert quality(best) > 0.88
    words = [w for w in best.arguments if w.startswith("method.threshold=")]
    assert out[-1].startswith(f"sora train {best.arguments[1]}")
    assert words[0] in out[-1]


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = carry_out(source_of(tmp_path, trials=3), scored, tmp_path / "out")
    again = source_of(tmp_path, trials=5)
    assert [record.before for record in again.records.values()] == [True] * 3
    more = carry_out(again, scored, tmp_path / "out")
    names = [job.name for job in first.started + more.started]
    assert names == [f"trial-{i:03d}" for i in range(5)]
    other = write_sweep(tmp_path, search={"space": {"method.r_max": {"low": 1, "high": 4}}})
    plan = plan_sweep(other, [f"output.dir={tmp_path / 'out'}"])
    with pytest.raises(SoraError, match="holds another search: its space differs"):
        SearchSource(plan)


def test_an_interrupted_trial_keeps_its_values(tmp_path: Path) -> None:
    source = source_of(tmp_path, trials=1)
    ready = present(source.next())
    again = present(source_of(tmp_path, trials=1).next())
    assert again.words == ready.words


def test_hopeless_trials_are_stopped(tmp_path: Path) -> None:
    source = source_of(tmp_path, trials=6, pruning=True, startup_trials=3)

    def script(job: Job) -> int | None:
        hopeless = job.name == "trial-004"
        metric = 0.1 if hopeless else 0.8
        report = finish(job, method="sora", metric=metric)
        if not hopeless:
            return 0
        report.status = "running"
        directory = Path(source.plan.directory, job.name)
        (directory / "report.json").write_text(report.model_dump_json())
        return None

    carry_out(source, script, tmp_path / "out")
    assert states(source) == ["finished"] * 4 + ["pruned", "finished"]
    study = source._study.get_trials()[4]
    assert study.state.name == "PRUNED"
    assert study.intermediate_values == {40: 0.1}


def test_two_objectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_of(tmp_path, trials=8, objectives=["metric", "parameters"])
    carry_out(source, scored, tmp_path / "out")
    source.conclude()
    out = capsys.readouterr().out
    assert "Pareto front: no other trial is better in both" in out
    front = {trial.number for trial in source._study.best_trials}
    assert front
    assert all(f"trial-{number:03d}" in out for number in front)


def test_a_metric_needs_evaluations(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, search={"space": SPACE}, set={"training.evaluate": "no"})
    with pytest.raises(SoraError, match="needs evaluations"):
        SearchSource(plan_sweep(path, [f"output.dir={tmp_path}"]))
