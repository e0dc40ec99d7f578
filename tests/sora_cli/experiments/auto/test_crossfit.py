"""Cross-fitting: the rows and the work of all runs, their recipes, and when it is chosen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np
import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.auto import rows as rows_module
from sora_cli.experiments.auto.budget import MOST_WORK, HalvesPlan
from sora_cli.experiments.auto.plan import AutoPlan, plan_auto
from sora_cli.experiments.auto.rows import planned_rows
from sora_cli.experiments.auto.tables import cost_lines, promise_lines
from sora_cli.recipe.load import load_recipe
from sora_cli.search.certifiable import Certifiable, certifiable_drop
from sora_cli.search.halves import half_confidence
from sora_cli.search.statement import NOT_ALONE
from sora_cli.tasks.row_scores import answer_scores, row_scores
from sora_cli.train.checkpoint.fork import check_recipe


def plan(*words: str) -> AutoPlan:
    usual = ["auto.max_drop=3pt", "training.max_steps=null", "training.epochs=10"]
    return plan_auto(load_recipe("rte", [*usual, *words]))


@pytest.mark.parametrize("total", [48, 120, 301, 1200, 5000])
@pytest.mark.parametrize("epochs", [3, 10, 40])
def test_the_work_stays_within_its_bound(total: int, epochs: int) -> None:
    found = plan(f"training.epochs={epochs}").halves_plan(total)
    assert 2 * found.test + found.screening == total
    assert 16 <= found.screening <= max(total // 10 + 1, 17)
    assert found.test == found.trained
    if total >= 300:
        assert 1.9 < found.work < MOST_WORK + 0.01
        assert found.heal >= 0.07


def test_few_passes_leave_work_for_fewer_sizes() -> None:
    assert plan("training.epochs=20").halves_plan(1200).sizes == 2
    assert plan("training.epochs=3").halves_plan(1200).sizes == 1
    assert plan("training.epochs=1").halves_plan(1200).work > MOST_WORK  # it is said, not hidden


def test_the_runs_of_a_half_are_one_until_the_cut() -> None:
    whole = plan("auto.cross_fit=true", "training.max_steps=100", "training.warmup=20")
    rows = whole.halves_plan(400)
    half = whole.on_half(2, rows)
    full, small = half.full(rows), half.candidate(2, 1234, rows)
    check_recipe(full.recipe.resolved(), small.recipe.resolved(), "full")
    data = full.recipe.data
    assert (data.selection, data.half, data.selection_rows) == ("half-train", 2, rows.screening)
    share = rows.trained / 400
    assert full.recipe.training.max_steps == round(100 * share)
    assert full.recipe.training.warmup == round(20 * share)
    assert full.output_dir.parts[-4:] == ("halves", "2", "sizes", "full")
    assert small.recipe.start is not None
    assert small.recipe.start.checkpoint == str(full.output_dir)
    final = dataclasses.replace(whole, healing=rows.heal).final(1234)
    assert final.recipe.data.selection == "validation"
    assert (final.recipe.start, final.recipe.training.max_steps) == (None, 100)
    assert final.recipe.method.model_dump()["cut_at"] == half.cut_at
    assert final.output_dir == whole.output
    assert "about 2." in "".join(cost_lines(whole, rows))


@pytest.mark.parametrize("points", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("cross_fit", [True, False])
def test_the_rows_that_a_promise_is_said_to_need_are_enough(points: int, cross_fit: bool) -> None:
    """Whoever brings as many rows must not read that still more are needed."""
    asked = plan(f"auto.max_drop={points}pt", "training.epochs=40")
    scores = row_scores("accuracy", "right", np.ones(3))

    def told(total: int) -> str:
        rows = asked.halves_plan(total) if cross_fit else asked.row_plan(total)
        each = half_confidence(0.95) if cross_fit else 0.95
        lines = promise_lines(asked.promise, rows, Certifiable.on(rows.test, each, scores))
        return " ".join(lines)

    few = told(100)
    assert "too few test rows" in few
    assert ("two halves of 42 test rows" in few) == cross_fit
    number = re.search(r"needs a training split of about ([\d,]+) rows", few)
    assert number is not None
    assert "too few" not in told(int(number[1].replace(",", "")))


@pytest.mark.parametrize("formula", ["right", "mean"])
def test_rows_that_depend_on_each_other_are_told(formula: str) -> None:
    """Of any metric, as the certificate's statement does."""
    scores = row_scores("recall", formula, np.ones(3), rows_alone=False)
    asked = plan("auto.max_drop=5pt", "training.epochs=40")
    rows = asked.row_plan(1000)
    for alone in (scores, dataclasses.replace(scores, rows_alone=True)):
        found = Certifiable.on(rows.test, 0.95, alone)
        assert (NOT_ALONE in promise_lines(asked.promise, rows, found)) != alone.rows_alone
        assert found.bound.exact == (alone.rows_alone and formula == "right")


def test_two_tests_are_no_more_exact_than_each() -> None:
    right, answers = (
        Certifiable.on(300, 0.975, scores)
        for scores in (
            row_scores("accuracy", "right", np.ones(3), rows_alone=False),
            answer_scores([], rows_alone=False),
        )
    )
    both = right.or_else(answers, 0.03).bound
    assert (both.exact, both.rows_alone) == (False, False)


@pytest.mark.parametrize("limit", [None, 900])
def test_training_on_all_rows_again_is_in_the_plan(limit: int | None) -> None:
    words = ["training.epochs=4", "training.batch_size=8"]
    words += [] if limit is None else [f"data.max_train_rows={limit}"]
    without, refit = plan(*words), plan(*words, "auto.refit=true")
    rows = refit.row_plan(1200)
    last = -(-(limit or 1200) // 8) * 4 / (-(-rows.trained // 8) * 4)
    assert f"training on all rows {last:.0%}" in list(cost_lines(refit, rows))[-1]
    assert "is not tested" in list(cost_lines(refit, rows))[-2]
    assert "all rows" not in " ".join(cost_lines(without, rows))
    shares = [
        re.search(r"at most (\d+)% of", list(cost_lines(one, rows))[-1]) for one in (without, refit)
    ]
    first, second = (int(share[1]) for share in shares if share is not None)
    assert second - first == pytest.approx(100 * last, abs=1)


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The number of rows in the training split, which nobody loads."""
    known = {"rows": 1200}
    monkeypatch.setattr(rows_module, "count_rows", lambda _: (known["rows"], known["rows"]))
    return known


def is_crossed(*words: str) -> bool:
    return isinstance(planned_rows(plan(*words))[1], HalvesPlan)


@pytest.mark.usefixtures("labelled")
def test_it_is_chosen_where_it_certifies_what_rows_held_out_do_not() -> None:
    held, halves = plan().row_plan(1200), plan().halves_plan(1200)
    now = certifiable_drop(held.test)
    then = certifiable_drop(halves.test, confidence=half_confidence(0.95))
    assert then < now
    between = f"auto.max_drop={(now + then) / 2}"
    _, found, notes = planned_rows(plan(between))
    assert found == halves
    assert "auto.cross_fit=false holds rows out" in notes[0]
    assert not is_crossed(between, "auto.cross_fit=false")
    assert not is_crossed(f"auto.max_drop={now + 0.001}")
    assert is_crossed(f"auto.max_drop={now + 0.001}", "auto.cross_fit=true")
    assert not is_crossed(f"auto.max_drop={then - 0.001}")
    (note,) = planned_rows(plan(f"auto.max_drop={then - 0.001}"))[2]
    assert f"two halves of {halves.test} rows ({then:.4f}, --cross-fit) can be expected" in note
    assert not is_crossed("auto.max_drop=smallest")
    assert is_crossed("auto.max_drop=smallest", "auto.cross_fit=true")
    assert not is_crossed(between, "auto.rows=100")
    assert not is_crossed(between, "data.max_train_rows=1000")
    assert not is_crossed(between, "task.metrics=[f1]")
    assert not is_crossed(between, "training.epochs=1")  # the work would be more


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["auto.cross_fit=true", "auto.rows=100"], "auto.rows does not go", "auto.rows=null"),
        (
            ["auto.cross_fit=true", "task.metrics=[f1]"],
            "right or wrong, each by itself: f1 has none",
            "auto.cross_fit=false",
        ),
        (["auto.cross_fit=true", "data.max_train_rows=9"], "can test", "data.max_train_rows=null"),
        (
            ["auto.max_drop=null", "auto.max_differ=1%", "auto.unlabelled=x", "auto.refit=true"],
            "all rows are trained on already",
            "auto.refit=false",
        ),
        (
            [
                "auto.max_drop=null",
                "auto.max_differ=1%",
                "auto.unlabelled=x",
                "auto.cross_fit=true",
            ],
            "auto.cross_fit goes with max_drop",
            "auto.cross_fit=false",
        ),
    ],
)
def test_what_does_not_go_together(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(SoraError, match=message) as caught:
        plan(*words)
    lines = "\n".join(caught.value.lines()).splitlines()
    assert len(lines) <= 3
    assert hint in lines[-1]


def test_too_few_rows_for_halves(labelled: dict[str, int]) -> None:
    labelled["rows"] = 40
    with pytest.raises(SoraError, match="cross-fitting needs 48 rows") as caught:
        planned_rows(plan("auto.cross_fit=true"))
    assert "auto.cross_fit=false" in caught.value.lines()[-1]
