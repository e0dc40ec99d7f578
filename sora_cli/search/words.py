"""The words of a search: what rows can certify, the sizes as a table, and the verdict.

Nothing is printed here. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import count

if TYPE_CHECKING:
    from sora_cli.search.certificate import BoundMethod, Certificate, SizeTest
    from sora_cli.search.promise import Promise
    from sora_cli.search.search import Candidate, Search
    from sora_cli.search.size import Size
    from sora_cli.tasks.row_scores import RowScores

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""


def certifiable_line(scores: RowScores, split: str, confidence: float) -> str | None:
    """Say what rows of right or wrong can certify; None: it is not known before a comparison."""
    from sora_cli.search.certifiable import DIFFERING, POWER, certifiable_drop

    if not scores.is_right_or_wrong:
        return None
    rows = len(scores)
    usual = certifiable_drop(rows, confidence=confidence)
    best = certifiable_drop(rows, differing=0, confidence=confidence)
    return (
        f"{rows:,} rows of {split} can certify a drop of {usual:.4f} ({POWER:.0%} of the time, if "
        f"{DIFFERING:.1%} of them differ and nothing is lost), at best {best:.4f}"
    )


def certifiable_lines(promise: Promise, rows: int, bound: BoundMethod) -> Iterator[str]:
    """Yield what so many test rows can certify, before anything is trained."""
    asked = (
        f"promise: at most {promise.max_drop:g} worse ({promise.given}), {promise.confidence:.0%}"
    )
    smallest = bound.smallest_drop
    if smallest is None:
        yield f"{asked}; the bound is {bound.method}"
        yield "what the rows can certify is computed after screening"
        return
    yield f"{asked}; the smallest that {count(rows)} test rows can certify: {smallest:.4f}"
    if smallest > promise.max_drop:
        yield (
            "WARNING: these rows cannot certify the promise, unless the two models hardly differ: "
            "the adapter may be written without a certificate (exit code 3); more rows: auto.rows=N"
        )


def tested_line(test: SizeTest, max_drop: float) -> str:
    """Return what came of a size's test, and whether smaller ones are tested."""
    bound = f"bound {test.upper:.4f}" if test.refused is None else f"no bound: {test.refused}"
    end = ": no smaller size is tested" if test.failed else ""
    return f"drop {test.drop:+.4f}, {bound}, of {max_drop:g}: {test.verdict}{end}"


def size_verdict(found: Certificate, number: int, *, reason: bool = False) -> str:
    """Return what came of a size that was trained.

    Args:
        reason: also why it has no bound.
    """
    test = found.candidates[number].test
    said = "not tested" if test is None else test.verdict
    if reason and test is not None and test.refused is not None:
        said = f"{said}: {test.refused}"
    return f"{said}, written" if number == found.chosen else said


def size_table(found: Certificate) -> Table:
    """Return a table of a certificate's sizes, the largest first."""
    metric = found.promise.metric
    columns = ["size", "components", "parameters", "largest rank", "screening drop", metric]
    columns += ["drop", "bound", ""]
    rows = [[*_size("full rank", found.full), "", f"{found.full.test:.4f}", "", "", ""]]
    trained = {size.max_params: number for number, size in enumerate(found.candidates)}
    for size in found.screened:
        number = trained.get(size.max_params)
        candidate = None if number is None else found.candidates[number]
        row = [*_size(f"{size.share:.1%}", candidate or size), f"{size.screening.drop:+.4f}"]
        test = None if candidate is None else candidate.test
        figures = ["", "", ""]
        if test is not None:
            figures = [f"{test.score:.4f}", f"{test.drop:+.4f}", f"{test.upper:.4f}"]
        rows.append([*row, *figures, "" if number is None else size_verdict(found, number)])
    return f"{metric} on the test rows, by size", columns, rows


def _size(name: str, size: Size) -> list[str]:
    return [name, count(size.components), count(size.parameters), str(size.largest_rank)]


def search_table(search: Search[Any]) -> Table:
    """Return a table of the sizes that were tried, the largest first."""
    columns = ["components", "parameters", search.metric, "drop", "at most", ""]
    whole, *sizes = search.candidates
    if search.outside:
        first = ["", "", f"{whole.score:.4f}", "", "", "the model"]
    else:
        first = _row(whole, "whole")
    return f"tried on {search.split}", columns, [first, *(_row(s, _verdict(s)) for s in sizes)]


def _row(size: Candidate[Any], verdict: str) -> list[str]:
    bound = size.bound
    upper = "" if bound is None else "-" if bound.upper is None else f"{bound.upper:+.4f}"
    figures = [f"{size.score:.4f}", f"{size.drop:+.4f}", upper]
    return [count(size.components), count(size.parameters), *figures, verdict]


def _verdict(size: Candidate[Any]) -> str:
    if size.bound is None:
        return "not tested"
    if size.passed_over:
        return "passed over"
    return "certified" if size.passed else "not certified"


def verdict_lines(search: Search[Any]) -> Sequence[str]:
    """Return what was found; a size that is not certified is called that."""
    promise, confidence = f"{search.promise.max_drop:g}", f"{search.promise.confidence:g}"
    chosen = f"{count(search.chosen.components)} components"
    bound = search.chosen.bound
    if search.chosen is search.candidates[0]:
        return [
            f"no smaller size is shown to lose at most {promise} of {search.metric}, nor does one "
            "on these rows: everything is kept",
            *_certifiable(search),
        ]
    if search.certified and bound is not None and bound.upper is not None:
        about = "" if bound.kind == "exact" else "; the bound is approximate"
        return [
            f"certified: {chosen} lose at most {bound.upper:.4f} of {search.metric}, within "
            f"{promise}, with confidence {confidence}, on rows like these{about}"
        ]
    but = "but" if search.chosen.drop <= search.promise.max_drop else "and"
    return [
        f"NOT certified: {chosen} lose {search.chosen.drop:.4f} of {search.metric} on these rows, "
        f"{but} the rows do not show that it is at most {promise}, with confidence {confidence}",
        *_certifiable(search),
    ]


def unseen_rows(search: Search[Any]) -> str:
    """Say that the score of what was chosen is a choice's own."""
    return f"note: {search.split} chose the size: report a score on other rows"


def _certifiable(search: Search[Any]) -> list[str]:
    """Return what the rows could have certified, where a test was made."""
    first = None if search.first_tested is None else search.first_tested.bound
    if first is None:
        return []
    rows, differing = f"the {first.rows:,} rows", f"{first.differing:,}"
    if first.least is not None:
        few = f"only {differing} differ between the whole and the largest size"
        return [f"{rows} can certify a drop of {first.least:.4f} at best: {few}"]
    if search.certifiable is None:
        return [f"{rows} certify nothing here: {first.reason}"]
    differ = f"{differing} of them differ between the whole and the largest size with a bound"
    return [
        f"{rows} can certify a drop of {search.certifiable:.4f} (80% of the time, if nothing is "
        f"lost; {differ})"
    ]
