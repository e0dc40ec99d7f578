"""The certificate of a finished `sora auto`, and which layers have no size to choose from."""

from __future__ import annotations

from sora_cli.core.words import first_few
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.experiments.auto.record import AutoRecord
from sora_cli.report import RunReport
from sora_cli.search.bound import Carrying
from sora_cli.search.certificate import Certificate, Measured, Promise, RowSet
from sora_cli.search.conclusion import choose
from sora_cli.search.promise import promise_of


def certificate_of(
    plan: AutoPlan,
    record: AutoRecord,
    carrying: Carrying,
    rows: dict[str, RowSet],
    report: RunReport,
) -> Certificate:
    """Return the certificate of a finished run.

    Args:
        report: of the written adapter, with its scores on the reported rows.
    """
    assert record.full is not None
    promise = promise_of(plan.loaded.recipe)
    chosen = choose(record.candidates)
    candidates = list(record.candidates)
    candidates[chosen] = candidates[chosen].model_copy(
        update={"reported": reported(report, record.full.reported, promise)}
    )
    return Certificate(
        promise=promise,
        bound=carrying.screened(record.screened),
        full=record.full,
        screened=record.screened,
        candidates=candidates,
        rows=rows,
        seeds={"training": plan.loaded.recipe.training.seed, "rows": plan.block.seed},
        base=report.base,
    )


def reported(report: RunReport, full: dict[str, float], promise: Promise) -> dict[str, Measured]:
    """Return the written adapter's scores on the reported rows, beside the full rank's."""
    found = {}
    for split, scores in report.metrics.items():
        score = scores[promise.metric]
        found[split] = Measured(score=score, drop=promise.drop(full[split], score))
    return found


def full_layers(report: RunReport) -> str | None:
    """Say which layers keep all components they could have; None: none does."""
    full = [path for path, rank in report.ranks.items() if rank.end == rank.start]
    if not full:
        return None
    rank = max(report.ranks[path].start for path in full)
    layers = "1 layer keeps" if len(full) == 1 else f"{len(full)} layers keep"
    return (
        f"{layers} all {rank} components ({first_few(full)}): a larger full rank may give more: "
        f"auto.r_max={2 * rank}"
    )
