"""Metrics from the parts of rows: the metric itself, and what repeated rows give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from sora_cli.tasks.metrics import load_metric, number_parts
from sora_cli.tasks.row_scores import (
    ASKED,
    FORMULAS,
    GROUPS,
    SAME,
    WITHIN,
    RowScores,
    answer_scores,
    row_scores,
)

ROWS = 60


def _parts(formula: str, classes: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    if formula in ("f1", "matthews_correlation"):
        wanted = rng.integers(classes, size=ROWS)
        return [np.where(rng.random(ROWS) < 0.6, wanted, rng.integers(classes, size=ROWS)), wanted]
    if formula in ("pearson", "spearman", "pearson_spearman"):
        wanted = rng.integers(6, size=ROWS)  # with ties
        return [np.round(wanted + rng.normal(size=ROWS), 1), wanted]
    if formula == "right":
        return [rng.random(ROWS) < 0.7]
    right = rng.integers(4, size=ROWS)
    return [right, right + rng.integers(1, 3, size=ROWS), right + rng.integers(2, size=ROWS)]


def _scores(formula: str, **options: Any) -> RowScores:
    return row_scores("m", formula, *_parts(formula, **options))


# a row of a group weighs its share of the group as it stands: a repeated row would change the share
@pytest.mark.parametrize("formula", sorted(FORMULAS.keys() - {SAME, WITHIN, ASKED, GROUPS}))
def test_weights_are_repeated_rows(formula: str) -> None:
    scores = _scores(formula)
    if formula in ("ratio", "perplexity"):
        scores = scores.take(np.arange(ROWS))
        scores = row_scores("m", formula, *scores.parts[:, :2].T)
    weights = np.random.default_rng(2).integers(3, size=(4, ROWS))
    expected = [scores.take(np.repeat(np.arange(ROWS), row)).value for row in weights]
    assert scores.weighted(weights) == pytest.approx(expected, rel=1e-9)
    assert scores.weighted(np.ones((1, ROWS)))[0] == scores.value
    assert len({*np.round(expected, 9)}) == 4


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("formula", ["f1", "matthews_correlation"])
def test_scores_of_classes_are_sklearns(formula: str, classes: int) -> None:
    given, wanted = _parts(formula, classes=classes)
    theirs = (
        matthews_corrcoef(wanted, given)
        if formula == "matthews_correlation"
        else f1_score(wanted, given, average="binary" if classes == 2 else "macro")
    )
    assert _scores(formula, classes=classes).value == pytest.approx(theirs, rel=1e-12)


def test_a_class_that_is_given_and_never_wanted_counts() -> None:
    given, wanted = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 1])
    theirs = f1_score(wanted, given, average="macro")
    assert row_scores("f1", "f1", given, wanted).value == pytest.approx(theirs)


def test_a_class_that_is_left_out_counts_in_no_mean() -> None:
    given, wanted = np.array([0, 1, 2, 0]), np.array([0, 1, 2, 1])
    scores = row_scores("f1", "f1", given, wanted)
    without = f1_score(wanted[[0, 1, 3]], given[[0, 1, 3]], average="macro")
    assert scores.weighted(np.array([[1, 1, 0, 1]]))[0] == pytest.approx(without)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "pearson_spearman", "accuracy", "f1"])
def test_parts_of_numbers_give_the_metric(metric: str) -> None:
    given, wanted = _parts("pearson" if "ear" in metric else "f1")
    expected = load_metric(metric)(given, wanted)[metric]
    formula, *parts = number_parts(metric, given, wanted)
    assert row_scores(metric, formula, *parts).value == pytest.approx(expected, rel=1e-12)
    assert (formula == "right") == (metric == "accuracy")
    broken = given.astype(float)
    broken[0] = np.nan
    formula, *parts = number_parts(metric, broken, wanted)
    assert np.isnan(row_scores(metric, formula, *parts).value)


def test_what_is_undefined_is_zero_as_in_the_metrics() -> None:
    same, other = np.ones(5), np.arange(5)
    for formula in ("pearson", "spearman", "matthews_correlation"):
        assert row_scores("m", formula, same, other).value == 0
    none = np.zeros(5)
    for formula in ("entity_f1", "precision", "recall"):
        assert row_scores("m", formula, none, none, none).value == 0
    assert np.isnan(row_scores("m", "ratio", none, none).value)


def test_counts_of_entities_make_precision_recall_and_f1() -> None:
    parts = np.array([[1.0, 2, 4], [2, 2, 3]])  # right, given, wanted
    found = {f: RowScores("m", f, parts).value for f in ("precision", "recall", "entity_f1")}
    assert found == pytest.approx({"precision": 3 / 4, "recall": 3 / 7, "entity_f1": 6 / 11})
    sums = RowScores("m", "ratio", np.array([[6.0, 2], [3, 1]]))
    assert sums.value == 3
    assert RowScores("m", "perplexity", sums.parts).value == pytest.approx(np.exp(3))


def test_a_metric_of_the_hubs_is_computed_on_repeated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        return lambda given, wanted: {name: float((given == wanted).mean()), "other": 0.0}

    monkeypatch.setattr("sora_cli.tasks.row_scores.load_metric", load)
    scores = row_scores("theirs", "theirs", [0, 1, 1], [0, 1, 0])
    assert scores.weighted(np.array([[1, 1, 1], [0, 3, 1]])) == pytest.approx([2 / 3, 3 / 4])


@pytest.mark.parametrize(
    ("full", "small"),
    [
        (["yes", "no"], ["yes", "yes"]),
        ([1, 0], [1, 1]),
        ([["B-X", "O"], ["O", "O"]], [["B-X", "O"], ["O", "B-X"]]),
        ([("cat", 3, 6), ("cat", 3, 6)], [("cat", 3, 6), ("cat", 9, 12)]),
        ([None, "x"], [None, None]),
        (["", "a b"], ["", "a  b"]),  # texts are compared whole
        ([1, "1"], [1, 1]),
    ],
)
def test_answers_differ_or_are_the_same(full: list[Any], small: list[Any]) -> None:
    one, other = answer_scores(full), answer_scores(small)
    assert one.is_agreement
    assert not one.is_right_or_wrong
    assert one.differs(other).tolist() == [False, True]
    assert (one.value, other.value) == (1.0, 1.0)
    assert other.beside(one) == one.beside(other) == 0.5
    assert one.take(np.array([0])).differs(other.take(np.array([0]))).tolist() == [False]


def test_many_answers_are_told_apart() -> None:
    texts = answer_scores([f"answer {n}" for n in range(20_000)])
    assert len(np.unique(texts.parts)) == 20_000


@pytest.mark.parametrize(
    ("tolerance", "differ"), [(0.0, [0, 1, 1, 1]), (0.25, [0, 0, 1, 1]), (5, [0] * 4)]
)
def test_numbers_are_the_same_within_a_tolerance(tolerance: float, differ: list[int]) -> None:
    full = answer_scores([1.0, 1.0, 1.0, -1.0], tolerance)
    small = answer_scores([1.0, 1.25, 1.26, 1.0], tolerance)
    assert full.differs(small).tolist() == [bool(one) for one in differ]
    assert small.differs(full).tolist() == [bool(one) for one in differ]
    assert small.beside(full) == 1 - sum(differ) / 4
