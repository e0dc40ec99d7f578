"""Cases that begin with another case's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.sweep import loop as loop_module
from sora_cli.experiments.sweep.engine import Job
from sora_cli.experiments.sweep.plan import PlannedRun, plan_sweep
from sora_cli.experiments.sweep.source import PlanSource
from sora_cli.report import read_report
from tests.helpers_errors import refusal
from tests.present import present
from tests.sora_cli.experiments.sweep.support import run_directory, write_sweep
from tests.sora_cli.experiments.sweep.test_loop import carry_out, good, source_of, states

LORA = {
    "method.name": "lora", "method.r": 4, "training.learning_rate": 1e-3,
    "training.keep_checkpoints": [0.8], "training.max_steps": 100,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "cut": {"from": "lora", "start.mean_rank": 1.2, "training.max_steps": 0},
    "healed": {"from": "cut", "training.max_steps": 30},
    "forked": {
        "from": {"case": "lora", "step": 0.8},
        "method.name": "cut",
        "method.r_max": 4,
        "method.target_r": 1.2,
    },
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_PAUSE", 0)


def _runs(folder: Path, **blocks: Any) -> dict[str, PlannedRun]:
    path = write_sweep(folder, **blocks)
    return {run.name: run for run in plan_sweep(path, ["output.dir=out"]).runs}


def test_a_run_begins_with_its_own_point_of_the_sweep(tmp_path: Path) -> None:
    runs = _runs(tmp_path, grid={"training.seed": [0, 1]}, cases=CASES)
    cut, healed, forked = (runs[f"{name}-s1"] for name in ("cut", "healed", "forked"))
    assert cut.needs == ["lora-s1"]
    assert healed.needs == ["cut-s1"]
    start = present(cut.loaded.recipe.start)
    assert (start.adapter, start.keep().given()) == ("out/lora-s1", {"mean_rank": 1.2})
    start = present(forked.loaded.recipe.start)
    assert (start.checkpoint, start.step) == ("out/lora-s1", 0.8)
    assert forked.loaded.recipe.output.derived == ["start.checkpoint"]
    assert runs["lora-s1"].loaded.recipe.start is None


def test_keys_are_those_of_the_case_below_but_for_another_methods(tmp_path: Path) -> None:
    runs = _runs(tmp_path, cases=CASES)
    for name in ("cut", "healed", "forked"):
        assert runs[name].loaded.recipe.training.learning_rate == 1e-3
        assert runs[name].loaded.recipe.output.label == name
    recipe = runs["healed"].loaded.recipe
    assert recipe.method.name == "lora"
    assert recipe.training.max_steps == 30
    assert recipe.start is not None
    assert recipe.start.keep().given() == {}
    assert "r" not in (runs["forked"].loaded.recipe.method.model_extra or {})


def test_a_fork_may_take_the_rate_that_the_case_below_finds(tmp_path: Path) -> None:
    auto = {"training.learning_rate": "auto"}
    both = {name: {**CASES[name], **auto} for name in ("lora", "forked")}
    assert len(_runs(tmp_path, cases=both)) == 2
    assert len(_runs(tmp_path, cases=both | {"lora": LORA})) == 2
    both["forked"]["training.learning_rate"] = 1e-3
    with pytest.raises(SoraError, match=r"another training\.learning_rate: 'auto', not 0\.001"):
        _runs(tmp_path, cases=both)


@pytest.mark.parametrize("case", [
{"from": "lara"},
{"from": "x"},
{"from": {"case": "lora", "at": 3}},
{"from": {"case": "lora", "step": 0.5}},
{"from": {"case": "lora", "step": 80}, "training.seed": 3},
{"from": {"case": "lora", "step": 0.8}, "method.alpha": 3.0},
{"from": "head"},
{"from": "lora", "start.rank": 0},
], ids=str)  # fmt: skip
def test_mistakes_are_told_before_any_run(
    tmp_path: Path,
    case: dict[str, Any],
) -> None:
    cases = {"lora": LORA, "head": {"method.name": "head"}, "x": case}
    with refusal():
        _runs(tmp_path, cases=cases)


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ({"a": {"from": "b"}, "b": {"from": "a"}}, "cases start from each other: a -> b -> a"),
        (
            {
                "a": {"from": "b", "method.name": "lora"},
                "b": {"method.name": "sora", "method.r_max": {"of": "a", "take": "components"}},
            },
            "these runs wait for each other",
        ),
    ],
)
def test_circles_are_refused(tmp_path: Path, cases: dict[str, Any], message: str) -> None:
    with pytest.raises(SoraError, match=message):
        _runs(tmp_path, cases=cases)


def test_runs_wait_for_what_they_begin_with(tmp_path: Path) -> None:
    source = source_of(tmp_path, grid={"training.seed": [0, 1]}, cases=CASES)
    engine = carry_out(source, good, tmp_path / "out")
    order = [job.name for job in engine.started]
    for seed in (0, 1):
        assert order.index(f"lora-s{seed}") < order.index(f"cut-s{seed}")
        assert order.index(f"cut-s{seed}") < order.index(f"healed-s{seed}")
    assert states(source) == ["finished"] * 8
    again = source_of(tmp_path, grid={"training.seed": [0, 1]}, cases=CASES)
    assert all(record.before for record in again.records.values())


def test_a_failed_run_blocks_what_begins_with_it(tmp_path: Path) -> None:
    source = source_of(tmp_path, cases=CASES)

    def script(job: Job) -> int:
        return 2 if job.name == "cut" else good(job)

    carry_out(source, script, tmp_path / "out")
    assert states(source) == ["finished", "failed", "blocked", "finished"]
    assert source.records["healed"].error == "it needs cut: failed"


def test_a_rule_may_be_another_runs_mean_rank(tmp_path: Path) -> None:
    cases = {
        "sora": {"method.name": "sora"},
        "lora": LORA,
        "cut": {
            "from": "lora",
            "start.mean_rank": {"of": "sora", "take": "mean_rank"},
            "training.max_steps": 0,
        },
    }
    source = source_of(tmp_path, cases=cases)
    assert isinstance(source, PlanSource)
    engine = carry_out(source, good, tmp_path / "out")
    report = present(read_report(run_directory(engine.started[-1])))
    assert report.recipe["start"]["mean_rank"] == 3
    assert report.recipe["output"]["derived"] == ["start.adapter", "start.mean_rank"]
