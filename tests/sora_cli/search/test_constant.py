"""A promise that the constant answer would keep is told to promise nothing."""

from __future__ import annotations

import pytest

from sora_cli.search.constant import balanced_drop, best_constant, nothing_promised

SKEWED, EVEN = {"neg": 5, "pos": 95}, {"a": 30, "b": 30, "c": 30}


def test_the_best_constant_answer() -> None:
    assert best_constant("accuracy", SKEWED) == ("pos", 0.95)
    name, score = best_constant("f1", SKEWED) or ("", 0.0)
    assert (name, round(score, 3)) == ("pos", 0.974)  # F1 of the second class, here the usual one
    assert best_constant("matthews_correlation", SKEWED) == ("neg", 0.0)
    assert best_constant("accuracy", EVEN) == ("a", pytest.approx(1 / 3))
    assert best_constant("pearson", SKEWED) is None
    assert best_constant("accuracy", {}) is None


@pytest.mark.parametrize(
    ("drop", "full", "kept"),
    [(0.14, 0.99, True), (0.04, 0.99, True), (0.03, 0.99, False), (0.0, 0.94, True)],
)
def test_a_promise_that_it_keeps(drop: float, full: float, kept: bool) -> None:
    said = nothing_promised("accuracy", drop, SKEWED, full=full)
    assert (said is not None) is kept
    assert said is None or "promises nothing: always answering 'pos'" in said


@pytest.mark.parametrize(("drop", "little"), [(0.14, True), (0.03, True), (0.02, False)])
def test_before_full_rank_is_known(drop: float, little: bool) -> None:
    said = nothing_promised("accuracy", drop, SKEWED)
    assert (said is not None) is little
    assert said is None or "promises little" in said
    assert nothing_promised("accuracy", drop, EVEN) is None


def test_what_the_rarer_class_can_promise() -> None:
    few, some, many = (balanced_drop(SKEWED, rows) for rows in (32, 150, 400))
    assert few is None  # two rows of the rarer class
    assert some is not None
    assert many is not None
    assert 0.05 < many < some < 0.5
