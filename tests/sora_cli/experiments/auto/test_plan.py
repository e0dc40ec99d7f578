"""The recipes of a search's runs, the rows they hold out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.auto.plan import AutoPlan, plan_auto, unused
from sora_cli.recipe.load import load_recipe
from sora_cli.search.promise import promise_of
from sora_cli.search.sizes import SHARES
from sora_cli.train.checkpoint.fork import check_recipe
from tests.helpers_errors import refusal

RTE = "rte"


def plan(*words: str) -> AutoPlan:
    return plan_auto(load_recipe(RTE, ["auto.max_drop=0.5pt", "training.max_steps=null", *words]))


def test_until_the_cut_all_runs_are_one() -> None:
    found = plan("method.name=sora", "method.r_max=4", "method.alpha=12", "method.dropout=0.1")
    rows = found.row_plan(2490)
    full, small = found.full(rows), found.candidate(2, 1234, rows)
    check_recipe(full.recipe.resolved(), small.recipe.resolved(), "full")  # a fork may begin there
    assert full.method_config.start() == small.method_config.start() == (4, 12)  # type: ignore[union-attr]
    assert full.recipe.training.keep_checkpoints == [found.cut_at]
    assert small.recipe.start is not None
    assert small.recipe.start.step == found.cut_at
    assert small.recipe.method.model_dump()["max_params"] == 1234
    assert small.recipe.method.model_dump()["cut_at"] == found.cut_at
    for loaded in (full, small):
        training, data = loaded.recipe.training, loaded.recipe.data
        assert (training.evaluate, training.keep_best) == ("no", False)
        assert (data.selection, data.selection_rows) == ("train-rows", rows.held_out)
        assert loaded.method_config.dropout == 0.1  # type: ignore[attr-defined]
    assert small.output_dir.name == "2"


def test_rslora_keeps_its_scaling() -> None:
    found = plan("method.name=lora", "method.r=4", "method.alpha=8", "method.use_rslora=true")
    assert (found.rank, found.alpha) == (4, 16)  # 8 / sqrt(4) is 16 / 4


def test_another_full_rank_keeps_alpha() -> None:
    found = plan("method.name=lora", "method.r=4", "method.alpha=8", "auto.r_max=16")
    assert (found.rank, found.alpha) == (16, 8)


def test_healing_and_scoring_stay_within_the_cost() -> None:
    for sizes in (1, 2, 3):
        found = plan(f"auto.sizes={sizes}", "training.epochs=10")
        rows = found.row_plan(2490)
        assert found.heal * sizes == pytest.approx(0.2)
        assert found.heal * sizes + rows.scoring <= 0.3
        assert rows.held_out + rows.trained == 2490
        assert rows.screening == pytest.approx(rows.held_out / 4, abs=1)
        work = 3 * found.loaded.recipe.training.total_steps(2490) * 32
        passes = rows.screening * (len(SHARES) + 1) + rows.test * (sizes + 1)
        batch = found.loaded.recipe.training.batch_size
        assert rows.scoring == pytest.approx(passes / (work / 32 * batch))


def test_a_short_run_scores_few_rows() -> None:
    long = plan("training.max_steps=2000").row_plan(60_000)
    short = plan("training.max_steps=200").row_plan(60_000)
    assert short.held_out < long.held_out / 5
    assert short.scoring <= 0.1


def test_rows_that_are_not_trained_on_are_used_first() -> None:
    words = ("data.max_train_rows=800", "training.max_steps=5000")
    found = plan(*words).row_plan(2490)
    assert found.held_out == 2490 - 800
    assert found.trained == 800
    found = plan("training.max_steps=5000").row_plan(2490)
    assert found.held_out == 2490 // 5


def test_rows_may_be_given() -> None:
    found = plan("auto.rows=1000").row_plan(2490)
    assert (found.screening, found.test, found.trained) == (250, 750, 1490)


@pytest.mark.parametrize(
    ("words", "total", "said"),
    [
        ((), 40, "to choose the size leave too few"),
        (("auto.rows=100",), 100, "100 held out to choose the size leave too few"),
        (("auto.rows=3",), 100, "leave too few"),
    ],
)
def test_too_few_rows(words: tuple[str, ...], total: int, said: str) -> None:
    with pytest.raises(SoraError, match=said):
        plan(*words).row_plan(total)


def test_a_path_is_not_walked() -> None:
    found = plan("path={vary: method.threshold, schedule: {start: 0, stop: 1, num: 2}}")
    assert found.full(found.row_plan(2490)).recipe.path is None


def test_values_without_effect_are_said() -> None:
    notes = unused(plan("training.keep_best=true", "data.selection=half-validation"))
    assert [note.split()[0] for note in notes if "command line" in note] == [
        "training.keep_best",
        "data.selection",
    ]


def test_the_directory(tmp_path: Path) -> None:
    assert plan("training.seed=3").output == Path("runs/rte-auto-s3")
    given: Any = plan(f"output.dir={tmp_path}")
    assert given.output == tmp_path


def by_answers(*words: str) -> AutoPlan:
    given = ["auto.max_differ=1%", "auto.unlabelled=rows.csv", "training.max_steps=null", *words]
    return plan_auto(load_recipe(RTE, given))


@pytest.mark.parametrize(
    ("words", "pool", "screening", "test"),
    [
        ([], 1000, 250, 750),
        ([], 10_000, 500, 9500),  # more of them would cost more than they tell
        ([], 4, 1, 3),
        (["auto.rows=400"], 10_000, 100, 300),
        (["auto.rows=4000"], 10_000, 1000, 3000),  # as asked for
    ],
)
def test_rows_without_labels_take_none_from_training(
    words: list[str], pool: int, screening: int, test: int
) -> None:
    found = by_answers(*words)
    rows = found.row_plan(2490, pool)
    assert (rows.screening, rows.test, rows.held_out) == (screening, test, 0)
    assert rows.trained == rows.total == 2490
    assert rows.unlabelled
    for loaded in (found.full(rows), found.candidate(1, 1234, rows)):
        assert loaded.recipe.data.selection == "validation"
        assert loaded.recipe.training.evaluate == "no"
    limited = by_answers("data.max_train_rows=100", *words)
    assert limited.row_plan(2490, pool).trained == 100


@pytest.mark.parametrize(
    ("words", "pool"),
    [
        ([], 3),
        (["auto.rows=400"], 399),
        (["auto.rows=2"], 399),
    ],
    ids=str,
)
def test_too_few_rows_without_labels(
    words: list[str],
    pool: int,
) -> None:
    with refusal():
        by_answers(*words).row_plan(2490, pool)


@pytest.mark.parametrize("basis", ["labels", "answers"])
def test_the_basis_is_in_all_recipes(basis: Any) -> None:
    found = plan("auto.unlabelled=rows.csv", "training.max_steps=null").on_basis(basis)
    rows = found.row_plan(2490, 1000 if basis == "answers" else None)
    assert found.promise.basis == basis
    for loaded in (found.full(rows), found.candidate(1, 1234, rows)):
        assert promise_of(loaded.recipe) == found.promise
        assert loaded.resolved()["auto"]["basis"] == basis
    if basis == "answers":
        assert (rows.test, rows.held_out) == (750, 0)
    else:
        assert rows == plan("training.max_steps=null").row_plan(2490)


def test_auto_rows_counts_labelled_rows_only() -> None:
    found = plan("auto.unlabelled=rows.csv", "auto.rows=400").on_basis("answers")
    assert found.row_plan(2490, 10_000).test == 9500
