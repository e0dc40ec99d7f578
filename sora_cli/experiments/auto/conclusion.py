"""The result of `sora auto`: which size is written, the certificate of it, and the sentences."""

from __future__ import annotations

from sora_cli.core.words import first_few
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.experiments.auto.record import AutoRecord
from sora_cli.experiments.auto.sizes import saving
from sora_cli.report import RunReport
from sora_cli.run.certificate import (
    Bound,
    Candidate,
    Certificate,
    Measured,
    Promise,
    RowSet,
)

SCOPE = (
    "the written adapter, this training run, and rows drawn like the test rows; not another seed, "
    "other data, or rows of another kind"
)


def choose(candidates: list[Candidate]) -> int:
    """Return which candidate is written: the last that passed its test, else the first."""
    passed = [i for i, size in enumerate(candidates) if size.test is not None and size.test.kept]
    return passed[-1] if passed else 0


def failed(candidates: list[Candidate]) -> int | None:
    """Return the candidate whose test ended the testing; None: none failed."""
    tests = ((i, size.test) for i, size in enumerate(candidates))
    return next((i for i, test in tests if test is not None and test.failed), None)


def certificate_of(
    plan: AutoPlan,
    record: AutoRecord,
    bound: Bound,
    rows: dict[str, RowSet],
    report: RunReport,
) -> Certificate:
    """Return the certificate of a finished run.

    Args:
        report: of the written adapter, with its scores on the reported rows.
    """
    assert record.full is not None
    promise = promise_of(plan, report)
    chosen = choose(record.candidates)
    candidates = list(record.candidates)
    candidates[chosen] = candidates[chosen].model_copy(
        update={"reported": reported(report, record.full.reported, promise)}
    )
    if bound.smallest_drop is None and record.named():
        bound = bound.model_copy(update={"smallest_drop": record.named()[0].certifiable})
    test = candidates[chosen].test
    kept = test is not None and test.kept
    return Certificate(
        status="certified" if kept else "not certified",
        statement=_kept(promise, candidates[chosen], rows["test"])
        if kept
        else _not_kept(promise, bound, candidates[chosen], rows["test"]),
        scope=SCOPE,
        promise=promise,
        bound=bound,
        full=record.full,
        screened=record.screened,
        candidates=candidates,
        chosen=chosen,
        next_smaller=failed(candidates) if kept else None,
        saved=saving(candidates[chosen], record.full, plan.block.serve),
        rows=rows,
        seeds={"training": plan.loaded.recipe.training.seed, "rows": plan.block.seed},
        base=report.base,
        adapter=candidates[chosen].digest,
    )


def promise_of(plan: AutoPlan, report: RunReport) -> Promise:
    """Return what was asked for."""
    block = plan.block
    return Promise(
        max_drop=plan.max_drop,
        given=str(block.max_drop),
        confidence=block.confidence,
        metric=report.main_metric or "",
        greater_is_better=plan.loaded.recipe.task.options.greater_is_better,
        serve=block.serve,
    )


def reported(report: RunReport, full: dict[str, float], promise: Promise) -> dict[str, Measured]:
    """Return the written adapter's scores on the reported rows, beside the full rank's."""
    found = {}
    for split, scores in report.metrics.items():
        score = scores[promise.metric]
        drop = full[split] - score if promise.greater_is_better else score - full[split]
        found[split] = Measured(score=score, drop=drop)
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


def _kept(promise: Promise, size: Candidate, rows: RowSet) -> str:
    assert size.test is not None
    return (
        f"with {promise.confidence:.0%} confidence {promise.metric} is at most "
        f"{promise.max_drop:g} worse than at full rank (bound {size.test.upper:.4f}, on "
        f"{rows.rows:,} rows: {size.test.drop:+.4f})"
    )


def _not_kept(promise: Promise, bound: Bound, size: Candidate, rows: RowSet) -> str:
    if size.test is None:
        return (
            f"{rows.rows:,} test rows cannot show that {promise.metric} is at most "
            f"{promise.max_drop:g} worse: the smallest loss they can certify is "
            f"{bound.smallest_drop:.4f}"
        )
    if size.test.refused is not None:
        return f"no bound of the loss can be computed: {size.test.refused}"
    return (
        f"no size passed its test: of the largest, {promise.metric} may be {size.test.upper:.4f} "
        f"worse than at full rank, and {promise.max_drop:g} is tolerated (on {rows.rows:,} rows: "
        f"{size.test.drop:+.4f})"
    )
