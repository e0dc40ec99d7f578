"""The tables and lines of `sora auto`: what it will cost, what the rows carry, what was found."""

from __future__ import annotations

from collections.abc import Iterator

from sora_cli.core.console import count, duration
from sora_cli.core.console import size as readable
from sora_cli.experiments.auto.budget import FACTORS, RowPlan, probe_steps
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.run.dry_run import DryRun
from sora_cli.search.certificate import Bound, Certificate
from sora_cli.search.ladder import LADDER
from sora_cli.search.size import Size

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""


def cost_lines(plan: AutoPlan, rows: RowPlan) -> Iterator[str]:
    """Yield what finding the size takes, beside the run at full rank."""
    block = plan.block
    healing = plan.heal * block.sizes
    yield (
        f"up to {block.sizes} of {len(LADDER)} sizes leave the run after {plan.cut_at:.1%} of its "
        f"steps and heal for the {plan.heal:.1%} that are left"
    )
    yield (
        f"rows held out of the training split: {count(rows.screening)} screen the sizes, "
        f"{count(rows.test)} test them; {count(rows.trained)} are trained on"
    )
    probing = _probing(plan, rows)
    trials = f", trials of learning rates {probing:.0%}" if probing else ""
    yield (
        f"at most {_extra(plan, rows):.0%} of the full run's work: healing {healing:.0%}, "
        f"scoring {rows.scoring:.0%}{trials}"
    )


def whole_lines(plan: AutoPlan, rows: RowPlan, full: DryRun) -> Iterator[str]:
    """Yield the time and the memory of everything.

    Args:
        full: of the run at full rank, as a dry run measured it.
    """
    seconds = full.seconds * (1 + _extra(plan, rows))
    about = (
        "training at full rank, the trials of rates, healing"
        if plan.block.probe
        else ("training at full rank, healing")
    )
    yield f"{'time':<20} {f'about {duration(max(seconds, 1))}':<20} {about} and scoring"
    yield f"{'memory':<20} {readable(full.memory):<20} predicted; the smaller sizes need no more"


def _extra(plan: AutoPlan, rows: RowPlan) -> float:
    """Return what is done beside the full run, at most, as a share of its work."""
    return plan.heal * plan.block.sizes + rows.scoring + _probing(plan, rows)


def _probing(plan: AutoPlan, rows: RowPlan) -> float:
    total = plan.loaded.recipe.training.total_steps(rows.trained)
    return len(FACTORS) * probe_steps(total) / total if plan.block.probe and total else 0.0


def carry_lines(plan: AutoPlan, rows: RowPlan, bound: Bound) -> Iterator[str]:
    """Yield what the test rows can certify, before anything is trained."""
    block = plan.block
    asked = f"promise: at most {plan.max_drop:g} worse ({block.max_drop}), {block.confidence:.0%}"
    smallest = bound.smallest_drop
    if smallest is None:
        yield f"{asked}; the bound is {bound.method}"
        yield "what the rows can certify is computed after screening"
        return
    yield f"{asked}; the smallest that {count(rows.test)} test rows can certify: {smallest:.4f}"
    if smallest > plan.max_drop:
        yield (
            "WARNING: these rows cannot carry the promise, unless the two models hardly differ: "
            "the adapter may be written without a certificate (exit code 3); more rows: auto.rows=N"
        )


def size_table(found: Certificate) -> Table:
    """Return a table with a row per size, the largest first."""
    metric = found.promise.metric
    columns = ["size", "components", "parameters", "largest rank", "screening drop", metric]
    columns += ["drop", "bound", ""]
    full = [*_size("full rank", found.full), "", f"{found.full.test:.4f}", "", "", ""]
    rows = [full]
    trained = {size.max_params: (i, size) for i, size in enumerate(found.candidates)}
    for size in found.screened:
        number, candidate = trained.get(size.max_params, (None, None))
        shown: Size = candidate or size
        row = [*_size(f"{size.share:.1%}", shown), f"{size.screening.drop:+.4f}"]
        test = candidate.test if candidate is not None else None
        if test is None:
            row += ["", "", "", _word(number, found, "not tested")]
        else:
            row += [f"{test.score:.4f}", f"{test.drop:+.4f}", f"{test.upper:.4f}"]
            row += [_word(number, found, test.verdict)]
        rows.append(row)
    return f"{metric} on the test rows, by size", columns, rows


def _size(name: str, size: Size) -> list[str]:
    return [name, count(size.components), count(size.parameters), str(size.largest_rank)]


def _word(number: int | None, found: Certificate, verdict: str) -> str:
    if number is None:
        return ""
    return f"{verdict}, written" if number == found.chosen else verdict
