"""From a sweep file to its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.experiments.sweep.needs import Take
from sora_cli.experiments.sweep.plan import plan_sweep, word
from sora_cli.recipe.yaml_lines import parse_value
from tests.helpers_counted import calls_of
from tests.helpers_errors import refusal
from tests.sora_cli.experiments.sweep.support import write_sweep

PAIRED = {"data.name": ["rte", "mrpc"], "training.learning_rate": [1e-3, 8e-4]}
CASES = {
    "sora": {"method.name": "sora", "method.threshold": 1e-3},
    "adalora": {
        "method.name": "adalora",
        "method.init_r": 8,
        "method.target_r": {"of": "sora", "take": "mean_rank"},
    },
}


def test_every_combination(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, grid={"training.seed": [0, 21]}, paired=PAIRED, cases=CASES)
    plan = plan_sweep(path, ["output.dir=out"])
    assert [run.name for run in plan.runs] == [
        "rte-sora-s0", "rte-adalora-s0", "mrpc-sora-s0", "mrpc-adalora-s0",
        "rte-sora-s21", "rte-adalora-s21", "mrpc-sora-s21", "mrpc-adalora-s21",
    ]  # fmt: skip
    for planned in plan.runs:
        recipe = planned.loaded.recipe
        assert planned.directory == Path("out", planned.name)
        assert recipe.training.learning_rate == {"rte": 1e-3, "mrpc": 8e-4}[str(recipe.data.name)]
        assert recipe.output.label == recipe.method.name
        assert f"-s{recipe.training.seed}" in planned.name
    assert plan.runs[7].takes == {"method.target_r": Take("mrpc-sora-s21", "mean_rank")}
    assert not plan.runs[6].takes


def test_a_rate_that_is_found_is_one_value_of_an_axis(tmp_path: Path) -> None:
    grid = {"training.learning_rate": ["auto", 1e-3], "training.seed": [0]}
    runs = plan_sweep(write_sweep(tmp_path, grid=grid)).runs
    assert [run.name for run in runs] == ["learning_rate-auto-s0", "learning_rate-0.001-s0"]
    assert [run.loaded.recipe.training.learning_rate for run in runs] == ["auto", 1e-3]


def test_directory_follows_the_file(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, grid={"training.seed": [0]})
    assert plan_sweep(path).directory == Path("runs/sweep")
    path = write_sweep(tmp_path, grid={"training.seed": [0]}, set={"output.dir": "there"})
    assert plan_sweep(path).runs[0].directory == Path("there/s0")


def test_command_line_goes_before_the_file(tmp_path: Path) -> None:
    grid = {"training.seed": [0, 1], "method.threshold": [1e-3, 1e-2]}
    path = write_sweep(tmp_path, set={"training.epochs": 3}, grid=grid)
    runs = plan_sweep(path, ["training.epochs=1", "training.seed=5"]).runs
    assert {run.loaded.recipe.training.seed for run in runs} == {5}
    assert {run.loaded.recipe.training.epochs for run in runs} == {1}
    assert [run.name for run in runs] == ["threshold-0.001", "threshold-0.01"]


@pytest.mark.parametrize("key", ["data.name=rte", "method.name=lora"])
def test_what_varies_can_not_be_set_for_all(tmp_path: Path, key: str) -> None:
    path = write_sweep(tmp_path, paired=PAIRED, cases=CASES)
    with pytest.raises(SoraError, match="this sweep varies"):
        plan_sweep(path, [key])


@pytest.mark.parametrize(
    "blocks",
    [
        {"grid": {"training.sead": [0]}},
        {"set": {"training.epochs": "x"}},
        {"cases": {**CASES, "a": {"method.r_max": {"of": "soar", "take": "mean_rank"}}}},
        {"cases": {**CASES, "a": {"method.r_max": {"of": "sora", "take": "it"}}}},
        {"cases": {**CASES, "a": {"method.r_max": {"of": "adalora", "take": "mean_rank"}}}},
        {"grid": {"recipe": ["base.yaml", "bsae.yaml"]}},
    ],
    ids=str,
)
def test_errors_say_where(
    tmp_path: Path,
    blocks: dict[str, Any],
) -> None:
    path = write_sweep(tmp_path, **blocks)
    with refusal():
        plan_sweep(path)


def test_recipes_may_vary(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, grid={"recipe": ["base.yaml", "quickstart"]})
    runs = plan_sweep(path).runs
    assert [run.name for run in runs] == ["base", "quickstart"]
    assert runs[1].loaded.recipe.data.path == "builtin://entailment"


def test_names_are_distinct(tmp_path: Path) -> None:
    cases = {"a b": {}, "a-b": {"training.epochs": 1}}
    assert [r.name for r in plan_sweep(write_sweep(tmp_path, cases=cases)).runs] == ["a-b", "a-b-2"]


@pytest.mark.parametrize("blocks", [
{"grid": {"training.seed": [3, 0, 0]}},
{"cases": {"a": {}, "b": {"training.epochs": 1}, "c": {"method.r_max": 8}}},
{"grid": {"output.label": ["x", "y"]}},
], ids=str)  # fmt: skip
def test_two_runs_of_the_same_content_are_an_error(
    tmp_path: Path,
    blocks: dict[str, Any],
) -> None:
    path = write_sweep(tmp_path, **blocks)
    with refusal():
        plan_sweep(path)


def test_a_million_runs_are_refused_before_one_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"training.seed": list(range(1000)), "method.r_max": list(range(1, 1001))}
    path = write_sweep(tmp_path, grid=grid)
    assert calls_of(lambda: run(["sweep", str(path)])) < 1_000_000
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "error: 1,000,000 runs: 10,000 is the limit"
    assert "1,000 (training.seed) x 1,000 (method.r_max)" in error[1]
    assert error[2] == "  to raise the limit: --max-runs 1000000"
    with pytest.raises(SoraError, match="2 is the limit"):
        plan_sweep(write_sweep(tmp_path, grid={"training.seed": [0, 1, 2]}), most=2)


def test_many_runs_are_planned_with_little_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shared recipe file is parsed once, and the number of runs is said first."""
    grid = {"training.seed": list(range(150)), "method.threshold": [1e-3, 1e-2]}
    path = write_sweep(tmp_path, grid=grid)
    work = calls_of(lambda: run(["sweep", str(path), "--dry-run", "--max-runs", "300"]))
    assert work < 1_000_000
    assert capsys.readouterr().err.startswith("planning 300 runs ...\n")


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn")))
KEYS = TEXT.filter(lambda key: key != "<<")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(VALUES)
@example('"')
@example(" \U0001f600")
@example(["\u2028 a"])
def test_words_are_read_as_they_were_meant(value: Any) -> None:
    read = parse_value(word("block.key", value).removeprefix("block.key="))
    assert read == value
    assert type(read) is type(value)
