"""A tolerated loss, and the smallest one that rows can certify."""

import math
from typing import Any

import numpy as np
import pytest

from sora_cli.core.errors import SoraError
from sora_cli.recipe.families import FAMILIES
from sora_cli.recipe.load import load_recipe
from sora_cli.search.binomial import share_bound
from sora_cli.search.certifiable import certifiable_drop
from sora_cli.search.promise import Promise, PromiseOptions, promise_of, proposed_drop, rounded_up
from sora_cli.search.statistics import statistic_of, statistic_on
from sora_cli.tasks.metrics import number_parts
from sora_cli.tasks.row_scores import row_scores
from tests.helpers_errors import refusal

RIGHT, MEAN = (row_scores("m", formula, np.ones(3)) for formula in ("right", "mean"))


def promise(metric: str = "accuracy", **changes: Any) -> Promise:
    fields = {"max_drop": math.nan, "given": "smallest", "confidence": 0.95, "metric": metric}
    return Promise(**{**fields, "greater_is_better": True, "serve": None, **changes})


def test_the_smallest_is_what_that_many_rows_can_be_expected_to_certify() -> None:
    able = statistic_of(RIGHT).method_on(400, 0.95)
    settled = promise().settled(able, 400)
    assert settled.max_drop == rounded_up(certifiable_drop(400)) == 0.025
    assert settled.given == "smallest"


def test_a_loss_that_was_given_stays() -> None:
    able = statistic_of(RIGHT).method_on(400, 0.95)
    given = promise(max_drop=0.5, given="50pt")
    assert given.settled(able, 400) is given


@pytest.mark.parametrize(("metric", "hint"), [("f1", "2pt"), ("loss", "0.02")])
def test_it_is_not_known_of_metrics_without_right_or_wrong_rows(metric: str, hint: str) -> None:
    able = statistic_of(MEAN).method_on(400, 0.95)
    with pytest.raises(SoraError, match=f"only after sizes .*\n.*--max-drop {hint}"):
        promise(metric).settled(able, 400)


@pytest.mark.parametrize(("drop", "expected"), [(0.0464, 0.05), (0.05, 0.05), (0.0501, 0.055)])
def test_half_points(drop: float, expected: float) -> None:
    assert rounded_up(drop) == expected


def test_what_is_proposed_can_be_settled() -> None:
    """Where `smallest` is proposed, each row is right or wrong by the metric."""
    assert proposed_drop("accuracy") == "smallest"
    assert number_parts("accuracy", np.ones(3), np.ones(3))[0] == "right"
    assert proposed_drop("f1") == "2pt"
    assert proposed_drop("perplexity") == "0.02"
    metrics = {metric for _, options in FAMILIES.values() for metric in options.METRICS}
    smallest = {metric for metric in metrics if proposed_drop(metric) == "smallest"}
    assert smallest == {
        "accuracy",
        "exact_match",
        "recall_at_1",
        "text_recall_at_1",
        "rewards/accuracies",
    }


def answers(share: float | str, **options: Any) -> PromiseOptions:
    return PromiseOptions(None, max_differ=share, **{"unlabelled": "rows.csv", **options})


@pytest.mark.parametrize(("share", "expected"), [("1%", 0.01), (0.02, 0.02), ("0.005", 0.005)])
def test_a_promise_about_answers(share: float | str, expected: float) -> None:
    asked = answers(share)
    asked.check()
    found = asked.of(load_recipe("rte", []).recipe)
    assert (found.kind, found.max_drop, found.given) == ("differ", expected, str(share))
    assert (statistic_on("answers").metric, found.metric) == ("agreement", "accuracy")
    assert statistic_on("answers").drop_between(1.0, 0.75, found) == 0.25
    losing = found.model_copy(update={"greater_is_better": False})
    assert (statistic_on("answers").drop_between(1.0, 0.75, losing), losing.drop(1.0, 0.75)) == (
        0.25,
        -0.25,
    )


def test_the_smallest_drop_that_answers_can_certify() -> None:
    recipe = load_recipe("rte", []).recipe
    found = PromiseOptions("smallest", unlabelled="f.csv", basis="answers").of(recipe)
    assert math.isnan(found.max_drop)
    able = statistic_on("answers").method_on(2000, 0.95)
    assert found.settled(able, 2000).max_drop == rounded_up(share_bound(56, 2000, 0.95)) == 0.035
    assert able.best_case == share_bound(0, 2000, 0.95)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (PromiseOptions(None), "no promise is given"),
        (PromiseOptions("1pt", max_differ="1%"), "are two promises"),
        (PromiseOptions(None, unlabelled="f.csv"), "--unlabelled goes with --max-differ or"),
        (PromiseOptions("1pt", basis="answers"), "auto.basis=answers needs rows to answer"),
        (answers("1%", basis="labels"), "auto.basis=labels goes with max_drop"),
        (PromiseOptions("1pt", tolerance=0.1), "--tolerance goes with --max-differ only"),
        (PromiseOptions("1pt", next_tokens=True), "equal next tokens .* bound no drop"),
        (answers("1%", unlabelled=None), "needs rows to answer"),
        (answers("smallest", unlabelled=None), "needs rows to answer"),
        (answers("1pt"), "must be a share"),
        (answers("smallest"), "must be a share of the rows, not 'smallest'"),
        (answers("0%"), "no number of rows can certify 0"),
        (answers("1%", tolerance=math.nan), "--tolerance must be 0 or more, not nan"),
        (answers("1%", tolerance=math.inf), "--tolerance must be 0 or more, not inf"),
        (answers("1%", tolerance=-1), "--tolerance must be 0 or more, not -1"),
        (answers("1%", confidence=1.0), "--confidence must be"),
    ],
)
def test_options_that_make_no_promise(asked: PromiseOptions, said: str) -> None:
    with pytest.raises(SoraError, match=said):
        asked.check()


@pytest.mark.parametrize(
    "words",
    [
        ["max_drop=1pt", "max_differ=1%", "unlabelled=f.csv"],
        ["max_differ=1%"],
        ["max_drop=1pt", "unlabelled=f.csv", "basis=answers", "next_tokens=true"],
        ["unlabelled=f.csv"],
        ["max_drop=1pt", "basis=answers"],
        ["max_differ=1%", "basis=labels", "unlabelled=f.csv"],
        ["max_differ=2", "unlabelled=f.csv"],
        ["confidence=0.9"],
    ],
    ids=" ".join,
)
def test_a_block_says_which_key_is_wrong(
    words: list[str],
) -> None:
    recipe = load_recipe("rte", [f"auto.{word}" for word in words]).recipe
    with refusal():
        promise_of(recipe)
    # the block itself where no key is wrong
