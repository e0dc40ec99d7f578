"""The scores of a trained model, and how much of them its adapters are responsible for."""

from __future__ import annotations

from sora_cli.prepare import Prepared
from sora_cli.remarks import adapters_remark, prediction_remark
from sora_cli.report import RunReport
from sora_cli.switching import switched_off
from sora_cli.training import AdapterTrainer

NONE_ALIVE = "no component is alive: every score is the head's alone"


def evaluate_run(report: RunReport, trainer: AdapterTrainer, ready: Prepared) -> None:
    """Score every reported split, the first one without the adapters, too.

    Fills `metrics`, `without_adapters` and, with what there is to say about them, `events`.
    """
    for split, rows in ready.report.items():
        predictions = trainer.predictions_of(rows, ready.task.metric_names)
        report.metrics[split] = ready.task.scores(predictions)
        _say(report, prediction_remark(ready.task, split, predictions))
    if ready.baseline is not None:
        return  # nothing that could be switched off
    if not any(ready.method.factors(m).drop_zeros().rank for m in ready.layers.values()):
        _say(report, NONE_ALIVE)
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
    _say(report, remark)


def _say(report: RunReport, remark: str | None) -> None:
    if remark is not None:
        report.events.append(remark)
