"""The evaluation at a run's end: rows that were just scored are not run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.train.trainer import AdapterTrainer
from tests.helpers_models import tiny_bert
from tests.helpers_runs import script_scores, train, write_recipe


@pytest.mark.parametrize(
    ("scores", "words", "passes"),
    [
        ([0.1, 0.9], [], 1),  # the passes without the adapters
        ([0.9, 0.1], [], 2),  # the best weights are those of the first epoch
        ([0.9, 0.1], ["training.keep_best=false"], 1),
        ([0.1, 0.9], ["training.evaluate=5"], 2),  # and there are 12
        ([0.1, 0.9], ["data.selection=half-validation"], 2),
    ],
)
def test_rows_are_scored_once_with_the_same_weights(
    scores: list[float],
    words: list[str],
    passes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2))
    made: list[int] = []
    predictions_of = AdapterTrainer.predictions_of

    def counted(self: AdapterTrainer, rows: Any, metrics: Any) -> Any:
        made.append(len(rows.lengths))
        return predictions_of(self, rows, metrics)

    monkeypatch.setattr(AdapterTrainer, "predictions_of", counted)
    with monkeypatch.context() as patched:
        script_scores(patched, scores)
        report = train(recipe, *words)
    assert len(made) == passes

    monkeypatch.setattr(AdapterTrainer, "final_predictions", predictions_of)
    with monkeypatch.context() as patched:
        script_scores(patched, scores)
        expected = train(recipe, *words, "--force")
    assert report.metrics == expected.metrics
    assert report.without_adapters == expected.without_adapters
