"""A tolerated loss, and the smallest one that rows can certify."""

import math
from typing import Any

import numpy as np
import pytest

from sora_cli.core.errors import SoraError
from sora_cli.recipe.families import FAMILIES
from sora_cli.search.certifiable import Certifiable, certifiable_drop
from sora_cli.search.promise import Promise, proposed_drop, rounded_up
from sora_cli.tasks.metrics import number_parts
from sora_cli.tasks.row_scores import row_scores

RIGHT, MEAN = (row_scores("m", formula, np.ones(3)) for formula in ("right", "mean"))


def promise(metric: str = "accuracy", **changes: Any) -> Promise:
    fields = {"max_drop": math.nan, "given": "smallest", "confidence": 0.95, "metric": metric}
    return Promise(**{**fields, "greater_is_better": True, "serve": None, **changes})


def test_the_smallest_is_what_that_many_rows_can_be_expected_to_certify() -> None:
    able = Certifiable.on(400, 0.95, RIGHT)
    settled = promise().settled(able, 400)
    assert settled.max_drop == rounded_up(certifiable_drop(400)) == 0.025
    assert settled.given == "smallest"


def test_a_loss_that_was_given_stays() -> None:
    able = Certifiable.on(400, 0.95, RIGHT)
    given = promise(max_drop=0.5, given="50pt")
    assert given.settled(able, 400) is given


@pytest.mark.parametrize(("metric", "hint"), [("f1", "2pt"), ("loss", "0.02")])
def test_it_is_not_known_of_metrics_without_right_or_wrong_rows(metric: str, hint: str) -> None:
    able = Certifiable.on(400, 0.95, MEAN)
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
    assert smallest == {"accuracy", "exact_match", "recall_at_1", "text_recall_at_1"}
