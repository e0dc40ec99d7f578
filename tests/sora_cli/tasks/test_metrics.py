"""The offline metrics: by hand, and against their libraries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from sora_cli.core.errors import SoraError
from sora_cli.recipe.families import main_metric
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.metrics import Scorer, load_metric
from tests.helpers_errors import refusal
from tests.helpers_rows import assert_rows_add_up
from tests.helpers_runs import glue_rows

CLASSES = ("accuracy", "f1", "matthews_correlation")
NUMBERS = ("pearson", "spearman", "pearson_spearman")


def _value(name: str, predictions: Any, labels: Any) -> float:
    result = load_metric(name)(np.asarray(predictions), np.asarray(labels))
    assert list(result) == [name]
    assert type(result[name]) is float
    return result[name]


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "expected"),
    [
        ("accuracy", [0, 1, 1, 0], [0, 1, 0, 0], 3 / 4),
        ("accuracy", [2, 1, 0], [2, 1, 1], 2 / 3),
        # 2 true, 1 false and 1 missed positives
        ("f1", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 4 / 6),
        # of each class: 1/1 and 1/2 -> 2/3; 1/2 and 1/1 -> 2/3; 1/1 and 1/1 -> 1
        ("f1", [0, 1, 1, 2], [0, 0, 1, 2], (2 / 3 + 2 / 3 + 1) / 3),
        # (2 x 1 - 1 x 1) / sqrt(3 x 3 x 2 x 2)
        ("matthews_correlation", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 1 / 6),
        ("matthews_correlation", [1, 0, 1, 0], [0, 1, 0, 1], -1.0),
        ("pearson", [0.0, 1.0, 2.0], [1.0, 3.0, 5.0], 1.0),
        # covariance 3/3, variances 2/3 and 14/3... : 3 / sqrt(2 x 14/3)
        ("pearson", [0.0, 1.0, 2.0], [0.0, 0.0, 3.0], 3 / math.sqrt(2 * 6)),
        ("spearman", [0.1, 0.2, 9.0], [1.0, 4.0, 5.0], 1.0),
        # rank differences 0, 1, 1: 1 - 6 x 2 / (3 x 8)
        ("spearman", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], 0.5),
        ("pearson_spearman", [0.0, 1.0, 2.0], [0.0, 1.0, 5.0], (5 / math.sqrt(28) + 1) / 2),
    ],
)
def test_by_hand(name: str, predictions: list[Any], labels: list[Any], expected: float) -> None:
    assert _value(name, predictions, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_classes_against_sklearn(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, 300)
    p = np.where(rng.random(300) < 0.5, y, rng.integers(0, classes, 300))
    average = "binary" if classes == 2 else "macro"
    expected = [sk.accuracy_score(y, p), sk.f1_score(y, p, average=average),
                sk.matthews_corrcoef(y, p)]  # fmt: skip
    assert [_value(name, p, y) for name in CLASSES] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.round(rng.random(300) * 5, 1)  # with ties
    p = (y + rng.normal(size=300) ** 3).astype(np.float32)
    r, rho = stats.pearsonr(p.astype(float), y).statistic, stats.spearmanr(p, y).statistic
    assert [_value(n, p, y) for n in NUMBERS] == pytest.approx([r, rho, (r + rho) / 2], abs=1e-6)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("name", CLASSES[1:])
def test_one_class_predicted_is_worth_nothing(name: str) -> None:
    assert _value(name, [0] * 4, [0, 1, 1, 0]) == 0.0
    assert _value(name, [0] * 4, [0] * 4) == 0.0


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("pair", [([2.5] * 4, [0.0, 1.0, 2.0, 3.0]), ([1.0, 2.0], [3.0, 3.0])])
def test_constant_numbers_are_worth_nothing(name: str, pair: tuple[list[float], ...]) -> None:
    assert _value(name, *pair) == 0.0


def _task(name: str, glue: str, **options: Any) -> Any:
    task = create_task(TaskBlock(name=name, **options), DataBlock(path="unused"))
    task.bind(glue_rows(glue, 6))
    return task


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("task", "glue", "width"),
    [("sequence-classification", "rte", 2), ("sequence-regression", "stsb", 1)],
)
def test_one_bad_output_spoils_every_score(task: str, glue: str, width: int, bad: float) -> None:
    """A broken model must never be chosen: NaN compares as better with nothing."""
    outputs = np.zeros((6, width), dtype=np.float32)
    outputs[:, 0] = range(6)
    labels = np.array([0, 0, 0, 0, 0, 1])
    made = _task(task, glue)
    assert all(math.isfinite(v) for v in made.metrics(Predictions(outputs, labels)).values())
    assert_rows_add_up(made, Predictions(outputs, labels), 6)
    outputs[3, -1] = bad
    scores = made.metrics(Predictions(outputs, labels))
    assert scores
    assert all(math.isnan(v) for v in scores.values())
    assert_rows_add_up(made, Predictions(outputs, labels), 6)


def test_scorer_gives_all() -> None:
    scorer = Scorer(["f1", "accuracy"])
    scores = scorer(np.array([1, 0, 1]), np.array([1, 1, 0]))
    assert scores == pytest.approx({"f1": 1 / 2, "accuracy": 1 / 3})
    assert scorer(np.array([1, 1]), np.array([1, 1])) == {"f1": 1.0, "accuracy": 1.0}  # no memory


def test_the_first_metric_chooses_or_the_one_that_is_named() -> None:
    assert _task("sequence-classification", "rte").best == "accuracy"
    assert _task("sequence-regression", "stsb").best == "pearson_spearman"
    both = ["f1", "accuracy"]
    assert _task("sequence-classification", "rte", metrics=both).best == "f1"
    named = _task("sequence-classification", "rte", metrics=both, best_metric="accuracy")
    assert named.best == "accuracy"
    assert list(named.metrics(Predictions(np.eye(2), np.array([0, 1])))) == both


def test_best_metric_must_be_among_them() -> None:
    with refusal():
        main_metric(["accuracy"], "f1")


def test_unknown_metric_offline() -> None:
    with pytest.raises(SoraError, match="no metric 'accuracee'") as caught:
        load_metric("accuracee")
    lines = caught.value.lines()
    assert len(lines) == 3
    assert "matthews_correlation" in lines[1]
    assert all(len(line) < 200 for line in lines)


def test_as_many_predictions_as_labels() -> None:
    with pytest.raises(ValueError, match="predictions"):
        load_metric("accuracy")(np.array([1, 0, 1]), np.array([1]))


def test_metrics_of_the_hub_give_all_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        def compute(self, *, predictions: Any, references: Any) -> dict[str, Any]:
            return {"a": np.float32(predictions.sum()), "b": int(references.sum())}

    monkeypatch.setattr("evaluate.load", lambda name: {"theirs": Two()}[name])
    scores = Scorer(["theirs", "accuracy"])(np.array([1, 0, 1]), np.array([1, 1, 1]))
    assert scores == {"a": 2.0, "b": 3.0, "accuracy": pytest.approx(2 / 3)}
