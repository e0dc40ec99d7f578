"""The choice of a path's stage: the smallest that is good enough. No torch here.

The choice uses the record's `choice` split. With `data.selection` half-validation or train-rows
this split shares no rows with the reported split, so the reported score is not the best of many.
"""

from __future__ import annotations

from sora_cli.core.errors import SoraError
from sora_cli.experiments.path.record import PathReport, Stage


def within_share(report: PathReport, keep: float) -> Stage:
    """Return the smallest stage that keeps a share (0..1) of stage 0's metric.

    If a smaller metric is better, the limit is stage 0's metric divided by `keep`. Stage 0's metric
    must be above zero: a share of it means nothing otherwise.
    """
    if not 0 < keep <= 1:
        raise SoraError(f"--keep is a share above 0 and up to 1, not {keep:g}", hint="--keep 0.99")
    first = report.score(report.stages[0], report.choice)
    if not first > 0:
        raise SoraError(
            f"stage 0 has {report.main_metric} {first:.4f} on {report.choice}: "
            "a share of it means nothing",
            hint="give the metric itself: --min-metric X",
        )
    return at_least(report, first * keep if report.greater_is_better else first / keep)


def within_drop(report: PathReport, drop: float) -> Stage:
    """Return the smallest stage with a drop of at most `drop` against stage 0.

    The drop is measured on the rows that choose; nothing is certified for other rows.
    """
    first = report.score(report.stages[0], report.choice)
    return at_least(report, first - drop if report.greater_is_better else first + drop)


def at_least(report: PathReport, metric: float) -> Stage:
    """Return the smallest stage with at least this metric; if there is none, raise an error."""
    sign = 1 if report.greater_is_better else -1
    good = [s for s in report.stages if sign * report.score(s, report.choice) >= sign * metric]
    if not good:
        best = _best(report, report.stages)
        raise SoraError(
            f"no stage reaches {report.main_metric} {metric:g} on {report.choice}",
            where=f"the best is stage {best.index}: {report.score(best, report.choice):.4f}",
        )
    # by parameters, not by index: components can revive, so a later stage may be larger
    return min(good, key=lambda s: (s.parameters, -sign * report.score(s, report.choice)))


def within_parameters(report: PathReport, limit: int) -> Stage:
    """Return the best stage with at most `limit` parameters; if all are larger, raise an error."""
    small = [stage for stage in report.stages if stage.parameters <= limit]
    if not small:
        least = min(report.stages, key=lambda stage: stage.parameters)
        raise SoraError(
            f"no stage has {limit:,} parameters or fewer",
            where=f"the smallest is stage {least.index}: {least.parameters:,}",
        )
    return _best(report, small)


def _best(report: PathReport, stages: list[Stage]) -> Stage:
    """Return the best stage by metric, and of equal stages the smallest."""
    sign = 1 if report.greater_is_better else -1
    return max(stages, key=lambda s: (sign * report.score(s, report.choice), -s.parameters))
