"""Score a trained model on every reported split, with and without its adapters."""

from __future__ import annotations

from collections.abc import Mapping

from methods.inject import switched_off
from sora_cli.report import RunReport
from sora_cli.run.prepare import Prepared
from sora_cli.run.remarks import adapters_remark, prediction_remark
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded
from sora_cli.train.trainer import AdapterTrainer

NONE_ALIVE = "no live component is left: every score comes from the head alone"


def evaluate_run(report: RunReport, trainer: AdapterTrainer, ready: Prepared) -> None:
    """Score every reported split, and the first split also with the adapters switched off.

    Fills the report's `metrics` and `without_adapters`; remarks on the scores go to `events`.
    """
    with trainer.reader.kept():
        for split, rows in ready.report.items():
            predictions = trainer.final_predictions(rows, ready.task.metric_names)
            report.metrics[split] = ready.task.scores(predictions)
            _add_event(report, prediction_remark(ready.task, split, predictions))
    if ready.baseline is not None:
        return  # a baseline has no adapters to switch off
    if not any(ready.method.factors(m).drop_zeros().rank for m in ready.layers.values()):
        _add_event(report, NONE_ALIVE)
    elif ready.task.options.needs_reference:
        return  # its scores are a distance from the reference, not from the base model
    elif ready.task.best in report.metrics[next(iter(ready.report))]:
        _score_without(report, trainer, ready)


def _score_without(report: RunReport, trainer: AdapterTrainer, ready: Prepared) -> None:
    metric, (split, rows) = ready.task.best, next(iter(ready.report.items()))
    with switched_off(ready.layers):
        without = ready.task.scores(trainer.predictions_of(rows, [metric]))[metric]
    report.without_adapters = {split: without}
    remark = adapters_remark(
        metric,
        split,
        score=report.metrics[split][metric],
        without=without,
        rows=len(rows.lengths),
        greater_is_better=trainer.recipe.task.options.greater_is_better,
    )
    _add_event(report, remark)


def _add_event(report: RunReport, remark: str | None) -> None:
    if remark is not None:
        report.events.append(remark)


def evaluate_all(
    trainer: AdapterTrainer, task: Task, splits: Mapping[str, Encoded]
) -> dict[str, dict[str, float]]:
    """Return the trained model's scores and exact loss on every reported split."""
    with trainer.reader.kept():
        return {
            name: task.scores(trainer.predictions_of(rows, task.metric_names))
            for name, rows in splits.items()
        }
