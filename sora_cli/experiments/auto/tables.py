"""Lines that `sora auto` prints: its cost, the promise, and layers that kept every component."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sora_cli.core.console import count, duration
from sora_cli.core.console import size as readable
from sora_cli.core.words import first_few
from sora_cli.experiments.auto.budget import RowPlan, rows_for
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.report import RunReport
from sora_cli.run.dry_run import DryRun
from sora_cli.search.constant import BALANCED, nothing_promised
from sora_cli.search.promise import Promise
from sora_cli.search.sizes import SHARES
from sora_cli.search.statistic import DIFFERING
from sora_cli.search.statistics import statistic_in
from sora_cli.search.words import promise_lines

if TYPE_CHECKING:
    from sora_cli.run.prepare import Prepared
    from sora_cli.search.evidence import Evidence
    from sora_cli.search.statistic import BoundMethod


def cost_lines(plan: AutoPlan, rows: RowPlan) -> Iterator[str]:
    """Yield lines on the cost of finding the size, in addition to the run at full rank."""
    sizes = plan.block.sizes
    yield (
        f"up to {sizes} of {len(SHARES)} sizes are cut from the run after {plan.cut_at:.1%} "
        f"of its steps, and healed for the other {plan.heal:.1%}"
    )
    source = "rows without labels" if rows.unlabelled else "rows held out of the training split"
    tests = f"{count(rows.test)} test them"
    if plan.promise.basis == "asked":
        tests = f"of {count(rows.test)} others as many test as the promise needs"
    yield (
        f"{source}: {count(rows.screening)} screen the sizes, {tests}; "
        f"{count(rows.trained)} are trained on"
    )
    yield (
        f"extra work: at most {_extra(plan, rows):.0%} of the full run's: healing "
        f"{plan.heal * sizes:.0%}, scoring {rows.scoring:.0%}"
    )


def promised(promise: Promise, rows: RowPlan, bound: BoundMethod) -> Iterator[str]:
    """Yield lines on the promise and the smallest drop that the test rows can certify."""
    statistic = statistic_in(bound, promise)
    few = bound.smallest_drop is not None and bound.smallest_drop > promise.max_drop
    more = _more_rows(promise, rows) if few and promise.basis == "labels" else ""
    yield from promise_lines(promise, statistic, bound, rows.test, more=more)
    if promise.basis == "asked" and promise.max_drop > 0:
        yield _labels_line(promise, rows.test)


def _labels_line(promise: Promise, available: int) -> str:
    """Return a line on the labels that a promise will take, as far as it is known by now."""
    from sora_cli.search.asked_search import rows_for_shares  # numpy

    tested = rows_for_shares([DIFFERING], promise, available, largest=DIFFERING)
    return (
        "labels are asked for where answers differ: of about "
        f"{math.ceil(tested * DIFFERING)} rows, "
        f"if {DIFFERING:.1%} of {count(tested)} test rows do; "
        f"of at most {promise.labels or 0} (--labels)"
    )


def constant_lines(promise: Promise, ready: Prepared) -> Iterator[str]:
    """Yield a line on a promise that one class as the answer to every row nearly keeps."""
    from sora_cli.run.class_counts import count_classes  # torch

    classes = count_classes(ready.task, {"train": ready.train}).get("train", {})
    if promise.kind == "drop" and not math.isnan(promise.max_drop):
        little = nothing_promised(promise.metric, promise.max_drop, classes)
        if little is not None:
            yield f"WARNING: {little}; {BALANCED} is 0 for every constant answer: task.metrics"


def base_alone(certificate: Evidence, report: RunReport) -> str | None:
    """Return a line on a promise that the base model keeps without an adapter; None: it does not.

    It is asked only where the base model has its output layer, which is not trained.
    """
    promise = certificate.promise
    if report.parameters is None or report.parameters.head or promise.by_answers:
        return None
    for split, alone in report.without_adapters.items():
        full = certificate.full.reported.get(split, math.nan)
        if promise.drop(full, alone) <= promise.max_drop:
            return (
                f"this promises nothing: the base model alone would keep it on {split} "
                f"({promise.metric} {alone:.4f}, and {full:.4f} at full rank)"
            )
    return None


def _more_rows(promise: Promise, rows: RowPlan) -> str:
    """Return a sentence on the rows that a promise needs, for a size with a true drop of 0."""
    from sora_cli.search.certifiable import rows_needed  # scipy

    if promise.max_drop == 0:
        return "no number of rows certifies a drop of 0, unless the smaller adapter is better"
    needed = rows_needed(promise.max_drop, confidence=promise.confidence)
    # of rows that repeat an input, more have to be held out for as many that test
    held, labelled = rows_for(math.ceil(needed * rows.planned_test / rows.test))
    if labelled <= rows.total:
        return f"{promise.max_drop:g} needs more test rows: auto.rows={held}"
    return (
        f"{promise.max_drop:g} needs a training split of about {count(labelled)} rows; this one "
        f"has {count(rows.total)}"
    )


def whole_lines(plan: AutoPlan, rows: RowPlan, full: DryRun) -> Iterator[str]:
    """Yield lines on the time and memory of all runs together.

    Args:
        full: the dry run's measurement of the run at full rank.
    """
    seconds = full.seconds * (1 + _extra(plan, rows))
    about = "training at full rank, healing and scoring"
    yield f"{'time':<20} {f'about {duration(max(seconds, 1))}':<20} {about}"
    yield f"{'memory':<20} {readable(full.memory):<20} predicted; the smaller sizes need no more"


def _extra(plan: AutoPlan, rows: RowPlan) -> float:
    """Return the work beside the full run, at most, as a share of the full run's work."""
    return plan.heal * plan.block.sizes + rows.scoring


def full_layers(report: RunReport) -> str | None:
    """Return a line on the layers that kept all components; None: there are none."""
    full = [path for path, rank in report.ranks.items() if rank.end == rank.start]
    if not full:
        return None
    rank = max(report.ranks[path].start for path in full)
    layers = "1 layer keeps" if len(full) == 1 else f"{len(full)} layers keep"
    return (
        f"{layers} all {rank} components ({first_few(full)}): a larger full rank may score better: "
        f"auto.r_max={2 * rank}"
    )
