"""Options of the task families: metrics and their direction."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sora_cli.core.errors import SoraError
from sora_cli.recipe.families import check_columns, main_metric, options_class, task_names
from sora_cli.recipe.metric_facts import METRICS, facts_of
from sora_cli.recipe.metric_names import check_metric, from_the_hub
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task


@pytest.mark.parametrize("family", task_names())
def test_a_familys_own_metrics_are_ones_it_computes(family: str) -> None:
    options = TaskBlock(name=family).options
    assert options.metrics
    assert set(options.metrics) <= set(options.METRICS)
    assert set(options.TEXT_METRICS) <= set(options.METRICS)
    assert from_the_hub(options) == []
    assert main_metric(options.metrics, options.best_metric) == options.metrics[0]


@pytest.mark.parametrize(
    ("family", "given", "greater"),
    [
        ("causal-lm", {}, False),  # its first metric is the loss
        ("causal-lm", {"metrics": ["perplexity"]}, False),
        ("causal-lm", {"metrics": ["token_accuracy", "loss"]}, True),
        ("causal-lm", {"metrics": ["token_accuracy", "loss"], "best_metric": "loss"}, False),
        ("causal-lm", {"metrics": ["loss", "rougeL"], "best_metric": "rougeL"}, True),
        ("causal-lm", {"metrics": "loss"}, False),
        ("causal-lm", {"greater_is_better": True}, True),  # the recipe's word
        ("seq2seq", {"metrics": ["exact_match"], "greater_is_better": False}, False),
        ("seq2seq", {}, True),
        ("image-text", {"metrics": ["loss"]}, False),
        ("sequence-regression", {}, True),
        ("sequence-classification", {"metrics": None}, True),
    ],
)
def test_whether_greater_is_better(family: str, given: dict[str, Any], greater: bool) -> None:
    assert TaskBlock(name=family, **given).options.greater_is_better is greater


@pytest.mark.parametrize("family", task_names())
def test_only_losses_are_worth_less_where_they_are_greater(family: str) -> None:
    for metric in options_class(family).METRICS:
        pairs = family == "embedding" and metric in ("pearson", "spearman")
        given = {"loss": "cosent"} if pairs else {}
        options = TaskBlock(name=family, metrics=[metric], **given).options
        assert options.greater_is_better is (metric not in {"loss", "perplexity"})
        unbounded = (
            metric.startswith(("rewards/", "logps/", "kl")) and metric != "rewards/accuracies"
        )
        assert facts_of(metric).ends_at_1 is (options.greater_is_better and not unbounded)
    assert not facts_of("mcc").ends_at_1
    assert {m for m in METRICS if METRICS[m].smaller_is_better} == {"loss", "perplexity"}


@pytest.mark.parametrize("family", task_names())
def test_options_of_no_family(family: str) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        _ = TaskBlock(name=family, no_such_option=1).options


def test_no_such_family() -> None:
    with pytest.raises(SoraError, match="unknown task 'causal'; did you mean 'causal-lm'"):
        _ = TaskBlock(name="causal").options


def test_metrics_are_the_familys_or_one_word() -> None:
    known = ("loss", "rougeL")
    for name in known:
        check_metric(name, known, from_hub=False)
    check_metric("mcc", known, from_hub=True)
    for name in ("mcc", "somebody/metric", "./metric.py", "LOSS", ""):
        with pytest.raises(SoraError, match="for this task") as caught:
            check_metric(name, known, from_hub=False)
        assert caught.value.where == "built-in: loss, rougeL"


def test_parts_of_rows() -> None:
    check_columns("causal-lm", {})
    check_columns("causal-lm", {"instruction": "ask", "output": "reply"})
    with pytest.raises(SoraError, match="no part 'ouput'; did you mean 'output'"):
        check_columns("causal-lm", {"instruction": "ask", "ouput": "reply"})


@pytest.mark.parametrize("family", task_names())
def test_a_family_is_the_class_of_its_name(family: str) -> None:
    made = create_task(TaskBlock(name=family), DataBlock(path="unused"))
    assert made.name == family
    assert made.best == made.metric_names[0] == made.options.metrics[0]
