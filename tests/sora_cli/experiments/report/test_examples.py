"""Examples: judged by what the records of each task family hold, ordered, counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.report.examples import (
    choose,
    disagreement,
    judge,
    probability,
    read_records,
)
from tests.helpers_reports import report_of
from tests.sora_cli.experiments.report.pages import class_records, write_predictions


def _record(**values: Any) -> dict[str, Any]:
    return {"split": "validation", "row": 0, **values}


def test_probabilities() -> None:
    assert probability([0.0, 0.0]) == pytest.approx(0.5)
    assert probability([math.log(3), 0.0]) == pytest.approx(0.75)
    assert probability([1000.0, 999.0]) == pytest.approx(1 / (1 + math.exp(-1)))
    assert math.isnan(probability([0.0, math.nan]))


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ({"prediction": "a", "label": "a", "logits": [1.0, 0.0]}, True),
        ({"prediction": "a", "label": "b", "logits": [1.0, 0.0]}, False),
        ({"prediction": 1.5, "label": 1.0}, None),
        ({"prediction": "Paris", "label": {"text": ["Paris", "in Paris"]}}, True),
        ({"prediction": "in Paris", "label": {"text": ["Paris", "in Paris"]}}, True),
        ({"prediction": "Rome", "label": {"text": ["Paris"]}}, False),
        ({"prediction": "", "label": {"text": []}}, True),
        ({"prediction": "Rome", "label": {"text": []}}, False),
        ({"prediction": ["O", "B-PER"], "label": ["O", "B-PER"]}, True),
        ({"prediction": ["O", None], "label": ["O", "B-PER"]}, False),
        ({"prediction": "up", "label": "down", "reward": 0.3}, False),
        ({"prediction": "down", "label": "down", "reward": -0.3}, True),
        ({"label": "a text", "loss": 0.5}, None),
    ],
)
def test_each_familys_records(values: dict[str, Any], right: bool | None) -> None:
    assert judge(_record(**values)).right is right


def test_the_surest_mistakes_come_first() -> None:
    said, (wrong, right) = choose(class_records(6, 4), 3)
    assert said == "6 of 10 rows are right (60.0%)"
    assert [example.row for example in wrong.shown] == [9, 8, 7]
    assert [example.row for example in right.shown] == [0, 1, 2]
    assert wrong.shown[0].texts == (("sentence", "text 9"),)
    assert (wrong.shown[0].label, wrong.shown[0].prediction) == ("no", "yes")
    assert right.shown[0].sureness == "probability 50.0%"


def test_numbers_are_nearer_or_farther() -> None:
    records = [_record(row=i, prediction=float(i), label=1.0) for i in range(5)]
    said, (far, near) = choose(records, 2)
    assert said == "5 rows, ordered by their distance to the label"
    assert [example.row for example in far.shown] == [4, 3]
    assert near.shown[0].row == 1
    assert far.shown[0].sureness == "distance to the label 3"


def test_texts_that_were_not_written_are_ordered_by_loss() -> None:
    records = [_record(row=i, source=f"s{i}", label="x", loss=loss)
               for i, loss in enumerate([0.5, None, 2.0])]  # fmt: skip
    _, (far, _) = choose(records, 5)
    assert [example.row for example in far.shown] == [2, 0]
    assert far.shown[0].texts == (("source", "s2"),)
    assert far.shown[0].prediction == "not written"


def test_long_texts_are_cut() -> None:
    record = _record(source="x" * 5000, prediction="y", label="z")
    _, (wrong, _) = choose([record], 1)
    assert wrong.shown[0].texts[0][1] == "x" * 599 + "…"


def test_predictions_of_another_run_are_doubted() -> None:
    report = report_of(metric=0.6, more={"data": {"rows": {"validation": 10}}})
    assert disagreement(report, "validation", class_records(6, 4)) is None
    assert disagreement(report, "validation", class_records(7, 3)) == (
        "these predictions have accuracy 0.7000, the report says 0.6000"
    )
    assert disagreement(report, "validation", class_records(6, 5)) == (
        "these are predictions of 11 rows; the report's validation has 10"
    )
    assert disagreement(report, "elsewhere", class_records(1, 1)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no predictions"), ("{", "is not JSON, line by line"), ("[1]", "no predictions"),
     ('{"split": "v", "row": "1", "label": 1}', "no predictions"),
     ('{"row": 1, "label": 1}', "no predictions")],
)  # fmt: skip
def test_files_that_hold_something_else(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(SoraError, match=said):
        read_records(tmp_path / "p.jsonl")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    records = class_records(2, 1)
    assert read_records(write_predictions(tmp_path / "p.jsonl", records)) == records
