"""How much worse a result may be, as people write it."""

from __future__ import annotations

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.recipe.tolerance import check_drop, parse_drop, parse_share


@pytest.mark.parametrize(
    ("value", "metric", "expected"),
    [
        ("0.01", "accuracy", 0.01),
        (0.01, "accuracy", 0.01),
        ("0.5pt", "accuracy", 0.005),
        ("1 pt", "matthews_correlation", 0.01),
        ("2points", "rougeL", 0.02),
        (0, "f1", 0.0),
        ("0.0999", "f1", 0.0999),
        ("20pt", "f1", 0.2),
        ("0.5", "loss", 0.5),
        ("3", "perplexity", 3.0),
        ("0.5", "a_metric_of_the_hubs", 0.5),
        ("1e-3", "pearson", 0.001),
    ],
)
def test_it_is_in_the_metrics_own_unit(value: str | float, metric: str, expected: float) -> None:
    assert parse_drop(value, metric) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", ["loss", "perplexity", "a_metric_of_the_hubs"])
def test_points_need_a_metric_that_ends_at_one(metric: str) -> None:
    with pytest.raises(SoraError, match=f"{metric} has no points") as caught:
        parse_drop("0.5pt", metric)
    assert "--max-drop 0.02" in str(caught.value.hint)


@pytest.mark.parametrize("value", ["0.1", 0.5, "1"])
def test_a_tenth_and_more_is_asked_back_with_both_spellings(value: str | float) -> None:
    with pytest.raises(SoraError) as caught:
        parse_drop(value, "accuracy", name="auto.max_drop")
    number = float(value)
    points = "1 point" if number == 1 else f"{number:g} of a point"
    assert f"is that {points}, or {number * 100:g} points?" in caught.value.what
    for spelling in (f"auto.max_drop={number:g}pt", f"auto.max_drop={number * 100:g}pt"):
        assert spelling in str(caught.value.hint)


@pytest.mark.parametrize("value", ["much", "0.5%", "pt", "", "-0.1", "-1pt", "nan", "inf", "infpt"])
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(SoraError, match="--max-drop must be"):
        check_drop(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1%", 0.01), ("0.5 %", 0.005), (0.01, 0.01), ("0.01", 0.01), ("99.9%", 0.999)],
)
def test_a_share_of_rows(value: str | float, expected: float) -> None:
    assert parse_share(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "near"),
    [
        *dict.fromkeys(
            ["some", "", "%", "150%", "100%", "-1%", "nan", "inf", "nan%"], "1%"
        ).items(),
        *[("smallest", "1%"), (0, "1%"), ("0%", "1%"), (120, "1%")],
        *[(5, "5%"), ("5pt", "5%"), ("0.5pt", "0.5%"), (1, "1%")],
    ],
)
def test_other_shares_are_refused(value: str | float, near: str) -> None:
    with pytest.raises(SoraError, match="must be a share of the rows") as caught:
        parse_share(value, name="auto.max_differ")
    assert caught.value.hint == f"auto.max_differ={near}"
    assert ("no number of rows can certify 0" in caught.value.what) == (value in {0, "0%"})
