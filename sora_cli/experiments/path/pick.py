"""The choice of a path's stage: the smallest one that is good enough. No torch here.

The choice is made on the record's `choice` split: with `data.selection` half-validation or
train-rows these are other rows than those reported, so the reported score is not a best-of-many.
"""

from __future__ import annotations

from sora_cli.core.errors import SoraError
from sora_cli.experiments.path.record import PathReport, Stage


def within_share(report: PathReport, keep: float) -> Stage:
    """Return the smallest stage that keeps that share (0..1) of stage 0's metric.

    For a metric that is better when smaller: one at most stage 0's divided by `keep`.

    Raises:
        SoraError: the share is no share, or stage 0's metric is not above zero.
    """
    if not 0 < keep <= 1:
        raise SoraError(f"--keep is a share above 0 and up to 1, not {keep:g}", hint="--keep 0.99")
    first = report.score(report.stages[0], report.choice)
    if not first > 0:
        raise SoraError(
            f"stage 0 has {report.main_metric} {first:.4f} on {report.choice}: "
            "a share of that says nothing",
            hint="give the metric itself: --min-metric X",
        )
    return at_least(report, first * keep if report.greater_is_better else first / keep)


def within_drop(report: PathReport, drop: float) -> Stage:
    """Return the smallest stage whose metric is at most `drop` worse than stage 0's.

    On the rows that choose; nothing is shown of others.
    """
    first = report.score(report.stages[0], report.choice)
    return at_least(report, first - drop if report.greater_is_better else first + drop)


def at_least(report: PathReport, metric: float) -> Stage:
    """Return the smallest stage whose metric is at least as good as that.

    Raises:
        SoraError: none is.
    """
    sign = 1 if report.greater_is_better else -1
    good = [s for s in report.stages if sign * report.score(s, report.choice) >= sign * metric]
    if not good:
        best = _best(report, report.stages)
        raise SoraError(
            f"no stage reaches {report.main_metric} {metric:g} on {report.choice}",
            where=f"the best is stage {best.index}: {report.score(best, report.choice):.4f}",
        )
    return min(good, key=lambda s: (s.parameters, -sign * report.score(s, report.choice)))


def within_parameters(report: PathReport, limit: int) -> Stage:
    """Return the best stage with no more parameters than that.

    Raises:
        SoraError: all are larger.
    """
    small = [stage for stage in report.stages if stage.parameters <= limit]
    if not small:
        least = min(report.stages, key=lambda stage: stage.parameters)
        raise SoraError(
            f"no stage has {limit:,} parameters or fewer",
            where=f"the smallest is stage {least.index}: {least.parameters:,}",
        )
    return _best(report, small)


def _best(report: PathReport, stages: list[Stage]) -> Stage:
    """Return the best stage by metric; of equal ones, the smallest."""
    sign = 1 if report.greater_is_better else -1
    return max(stages, key=lambda s: (sign * report.score(s, report.choice), -s.parameters))
