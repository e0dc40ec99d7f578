"""The tool that compares an adapter's gain on rows of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.experiments.compare.runs import selection_score
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe
from tools.gains import HELD_OUT, score, table


@pytest.mark.long
def test_gains_are_those_of_the_run(tmp_path: Path) -> None:
    report = train(
        write_recipe(
            tmp_path,
            tiny_bert(num_labels=2),
            data={
                "files": {
                    "train": str(tmp_path / "train.jsonl"),
                    "validation": str(tmp_path / "validation.jsonl"),
                },
                "selection": "train-rows",
                "selection_rows": 24,
            },
            training={"evaluate": 4, "keep_best": False},
        )
    )
    groups = score(tmp_path / "out", [tmp_path / "validation.jsonl"])
    held, validation = groups.values()
    assert held[1].value == pytest.approx(selection_score(report))
    assert validation[1].value == report.metrics["validation"]["accuracy"]
    assert validation[0].value == report.without_adapters["validation"]
    lines = table({name: [pair, pair] for name, pair in groups.items()}).splitlines()
    assert lines[2].startswith(f"| {HELD_OUT} | 24 | {100 * held[0].value:.2f} |")
    gain = 100 * (validation[1].value - validation[0].value)
    assert f"| validation | 24 | {100 * validation[0].value:.2f} |" in lines[3]
    assert f"| {gain:+.2f} [" in lines[3]
    (few, _) = score(tmp_path / "out", [tmp_path / "validation.jsonl"], most=8).values()
    assert len(few[0]) == 8
