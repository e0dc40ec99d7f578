"""The texts of a search: the certifiable drop, the tables of sizes, and the verdict.

This module returns texts and prints nothing. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import count
from sora_cli.core.table import Cell, Column, Table
from sora_cli.search.promise import SMALLEST, rounded_up
from sora_cli.search.row_set import TEST
from sora_cli.search.statement import NOT_ALONE, as_they_come

if TYPE_CHECKING:
    from sora_cli.search.bounds import Bound
    from sora_cli.search.certificate import BoundMethod, Certificate, SizeTest
    from sora_cli.search.promise import Promise
    from sora_cli.search.search import Candidate, Search
    from sora_cli.search.size import Size
    from sora_cli.tasks.row_scores import RowScores

_SIZE = (Column("components", count), Column("parameters", count))


def certifiable_line(scores: RowScores, split: str, confidence: float) -> str | None:
    """Return a line on the drop that rows can certify; None: their number does not determine it."""
    from sora_cli.search.certifiable import DIFFERING, POWER, certifiable_drop

    rows = len(scores)
    if scores.is_agreement:
        return None  # `answers_lines` says it, where the promise is known
    if not scores.is_right_or_wrong:
        return None
    usual = certifiable_drop(rows, confidence=confidence)
    best = certifiable_drop(rows, differing=0, confidence=confidence)
    return (
        f"{rows:,} rows of {split} can certify a drop of {usual:.4f} with a probability of "
        f"{POWER:.0%}, if the models differ on {DIFFERING:.1%} of them and the true drop is 0; "
        f"at best {best:.4f}"
    )


def certifiable_lines(promise: Promise, rows: int, bound: BoundMethod, more: str) -> Iterator[str]:
    """Yield lines on the drop that a number of test rows can certify, before any training.

    Args:
        more: a sentence on the number of rows that the promise needs.
    """
    promised = (
        f"promise: a drop of at most {promise.max_drop:g} ({promise.given}), with "
        f"{promise.confidence:.0%} confidence"
    )
    smallest = bound.smallest_drop
    if smallest is None:
        yield f"{promised}; the bound is {bound.method}"
        yield "the smallest drop that the test rows can certify is computed after screening"
        return
    yield f"{promised}; {count(rows)} test rows can be expected to certify {smallest:.4f}"
    if smallest > promise.max_drop:
        yield (
            "WARNING: too few test rows to certify this drop, unless the two models almost always "
            "agree: the adapter may be written without a certificate (exit code 3)"
        )
        fits = f"--max-drop {SMALLEST} ({rounded_up(smallest):g})"
        yield f"these rows can be expected to certify {fits}; {more}"


def answers_lines(promise: Promise, rows: int, bound: BoundMethod) -> Iterator[str]:
    """Yield lines on a promise that answers test, and on the rows that may differ.

    Args:
        rows: number of test rows.
    """
    from sora_cli.search.agreement import allowed_rows, rows_for_none, share_bound  # scipy
    from sora_cli.search.certifiable import DIFFERING

    share = f"{100 * promise.max_drop:g} %"
    promised = f"promise: at most {share} of the {promise.compared} {promise.differ}"
    if promise.kind == "drop":
        promised = f"promise: a drop of at most {promise.max_drop:g} ({promise.given})"
    promised += f", with {promise.confidence:.0%} confidence"
    allowed = allowed_rows(promise.max_drop, rows, promise.confidence)
    tested = f"{count(rows)} test rows"
    if allowed is not None:
        few = f"at most {count(allowed)}" if allowed else "none"
        how = promise.differ if promise.next_tokens else "are answered differently"
        yield f"{promised}; certified if {few} of {tested} {how}"
    else:
        yield promised
        need = rows_for_none(promise.max_drop, promise.confidence)
        more = "no number of rows is enough" if need is None else f"it takes {count(need)} at least"
        least = 100 * share_bound(0, rows, promise.confidence)
        option = "--max-differ" if promise.kind == "differ" else "a drop of"
        more += (
            f", and these can certify {option} {math.ceil(10 * least) / 10:g}% at best: the "
            "adapter will be written without a certificate (exit code 3)"
        )
        yield f"WARNING: {tested} cannot certify this, even if no answer differs; {more}"
    if promise.kind == "drop" and bound.smallest_drop is not None:
        yield (
            f"these rows can be expected to certify {bound.smallest_drop:.4f}, if {DIFFERING:.1%} "
            "of the rows are answered differently and the true drop is 0"
        )


def expected_line(promise: Promise, rows: int, drop: float, certifiable: float) -> str:
    """Return a line on the outcome that screening expects of a size.

    Args:
        rows: number of test rows.
        drop, certifiable: expected drop before healing, and what the rows can certify beside it.
    """
    if promise.by_answers:
        return (
            f"{100 * drop:.2f} % of the {promise.compared} are expected to {promise.differ} before "
            f"healing; {rows:,} test rows could then certify {100 * (drop + certifiable):.2f} %"
        )
    return (
        f"a drop of {drop:+.4f} is expected before healing; {rows:,} test rows can be expected to "
        f"certify {certifiable:.4f}"
    )


def tested_line(test: SizeTest, promise: Promise) -> str:
    """Return a line on the result of a size's test."""
    end = ": no smaller size is tested" if test.failed else ""
    if promise.by_answers:
        return (
            f"differing {promise.compared}: {test.differing or 0:,} ({100 * test.drop:.2f} %), "
            f"bound {100 * test.upper:.2f} %, promise {100 * promise.max_drop:g} %: "
            f"{test.verdict}{end}"
        )
    bound = f"bound {test.upper:.4f}" if test.refused is None else f"no bound: {test.refused}"
    return f"drop {test.drop:+.4f}, {bound}, promise {promise.max_drop:g}: {test.verdict}{end}"


def size_verdict(certificate: Certificate, number: int, *, reason: bool = False) -> str:
    """Return the verdict on a trained size in a few words.

    Args:
        reason: if it has no bound, add the reason.
    """
    test = certificate.candidates[number].test
    verdict = "not tested" if test is None else test.verdict
    if reason and test is not None and test.refused is not None:
        verdict = f"{verdict}: {test.refused}"
    return f"{verdict}, written" if number == certificate.chosen else verdict


def size_table(certificate: Certificate) -> Table:
    """Return a table of the trained sizes, from the largest to the smallest."""
    metric, rows = certificate.promise.tested, certificate.rows[TEST].rows
    columns: list[Column | str] = ["size", *_SIZE, "largest rank", Column(metric, ".4f")]
    columns += [*_drop_columns(certificate.promise), ""]
    full = certificate.full
    lines: list[list[Any]] = [["full rank", *_size(full), full.test, None, None, None]]
    shares = {size.max_params: size.share for size in certificate.screened}
    for number, size in enumerate(certificate.candidates):
        test = size.test
        figures = (None, None, None) if test is None else (test.score, test.drop, test.upper)
        name = f"{shares.get(size.max_params, math.nan):.1%}"
        lines.append([name, *_size(size), *figures, size_verdict(certificate, number)])
    sure = f"at most: with {certificate.promise.confidence:.0%} confidence"
    return Table(f"{metric} on {rows:,} test rows; {sure}", columns, lines)


def _drop_columns(promise: Promise) -> tuple[Column, Column]:
    """Return the columns of the drop and its bound; of answers, the share that differs."""
    if promise.by_answers:
        return Column("differ", ".2%"), Column("at most", ".2%")
    return Column("drop", "+.4f"), Column("at most", "+.4f")


def untrained_line(certificate: Certificate) -> str | None:
    """Return a line on the sizes that were screened but not trained; None: all were trained."""
    trained = {size.max_params for size in certificate.candidates}
    screened = certificate.screened
    shares = [f"{size.share:.1%}" for size in screened if size.max_params not in trained]
    if not shares:
        return None
    few = f"{len(shares)} other sizes were" if len(shares) > 1 else "1 other size was"
    return f"{few} scored before healing, and not trained: {', '.join(shares)}"


def _size(size: Size) -> tuple[int, int, int]:
    return size.components, size.parameters, size.largest_rank


def search_table(search: Search[Any]) -> Table:
    """Return a table of the sizes that were tried, from the largest to the smallest."""
    columns: list[Column | str] = [*_SIZE, Column(search.promise.tested, ".4f")]
    columns += [*_drop_columns(search.promise), ""]
    whole, *sizes = search.candidates
    first = (
        [None, None, whole.score, None, None, search.outside]
        if search.outside is not None
        else _tried(whole, "uncut")
    )
    rows = [first]
    for size in sizes:
        rows.append(_tried(size, _verdict(size)))
    return Table(f"tried on {search.split}", columns, rows)


def _tried(size: Candidate[Any], verdict: str) -> list[Any]:
    bound = size.bound
    upper = None if bound is None else Cell(None, "-") if bound.upper is None else bound.upper
    return [size.components, size.parameters, size.score, size.drop, upper, verdict]


def _verdict(size: Candidate[Any]) -> str:
    if size.bound is None:
        return "not tested"
    if size.passed_over:
        return "passed over"
    return "certified" if size.passed else "not certified"


def verdict_lines(search: Search[Any]) -> Sequence[str]:
    """Return the lines of the verdict: the chosen size, certified or not, and its drop."""
    if search.promise.kind == "differ":
        return _verdict_on_answers(search)
    promise, confidence = f"{search.promise.max_drop:g}", f"{search.promise.confidence:g}"
    chosen = f"{count(search.chosen.components)} components"
    bound = search.chosen.bound
    if search.chosen is search.candidates[0]:
        return [
            f"no smaller size is certified to lose at most {promise} of {search.metric}, and the "
            f"largest of them {'differs' if search.promise.by_answers else 'loses'} more on these "
            "rows: everything is kept",
            *_certifiable(search),
        ]
    if search.certified and bound is not None and bound.upper is not None:
        about = "" if bound.kind == "exact" else "; the bound is approximate"
        about = about if search.chosen.scores.rows_alone else f"; {NOT_ALONE}"
        return [
            f"certified: {chosen} lose at most {bound.upper:.4f} of {search.metric}, within "
            f"{promise}, {_reason(search, bound)}with confidence {confidence}, on distinct inputs "
            f"like these{about}{_every(search)}"
        ]
    but = "but" if search.chosen.drop <= search.promise.max_drop else "and"
    lose = f"{chosen} lose {search.chosen.drop:.4f} of {search.metric} on these rows"
    if search.promise.by_answers:
        lose = f"with {chosen} {_differing(search)}"
    return [
        f"NOT certified: {lose}, {but} the rows cannot certify a drop of at most {promise} with "
        f"confidence {confidence}",
        *_certifiable(search),
    ]


def _every(search: Search[Any]) -> str:
    """Return the end of a sentence on all rows as they come, where some repeat an input."""
    scores, bound = search.chosen.scores, search.chosen.bound
    return as_they_come(
        search.promise,
        rows=len(scores),
        held=None if scores.every is None else len(scores.every),
        drop=None if bound is None else bound.every,
    )


def _reason(search: Search[Any], bound: Bound) -> str:
    """Return the part that answers have in a certified drop; empty if labels test it."""
    if not search.promise.by_answers:
        return ""
    differ = f"at most {100 * (bound.upper or 0):.2f} % of the answers differ"
    return f"because {differ} ({bound.differing:,} of {bound.rows:,} rows), "


def _of_reference(search: Search[Any]) -> str:
    return f"{search.outside or 'the uncut adapter'}'s"


def _differing(search: Search[Any]) -> str:
    """Return the number of answers that differ between the reference and the chosen size."""
    rows, promise = search.rows, search.promise
    differing = f"{count(round(search.chosen.drop * rows))} of these {count(rows)}"
    return f"{differing} {promise.compared} {promise.differ} from {_of_reference(search)}"


def _verdict_on_answers(search: Search[Any]) -> Sequence[str]:
    """Return the lines of the verdict on a promise about answers."""
    share, confidence = f"{100 * search.promise.max_drop:g} %", f"{search.promise.confidence:g}"
    size, chosen = search.chosen, f"{count(search.chosen.components)} components"
    bound, promise = size.bound, search.promise
    if size is search.candidates[0]:
        return [
            f"no smaller size is certified to answer at most {share} of the rows otherwise, and "
            "the largest of them differs on more of these rows: everything is kept",
            *_certifiable_share(search),
        ]
    if search.certified and bound is not None and bound.upper is not None:
        seen = f"{count(bound.differing)} of {count(bound.rows)} rows differ"
        return [
            f"certified: with {chosen} at most {share} of the {promise.compared} {promise.differ} "
            f"from {_of_reference(search)} (bound {100 * bound.upper:.2f} %: {seen}), with "
            f"confidence {confidence}, on distinct inputs like these"
            + ("" if size.scores.rows_alone else f"; {NOT_ALONE}")
            + _every(search)
        ]
    but = "but" if size.drop <= search.promise.max_drop else "and"
    return [
        f"NOT certified: with {chosen} {_differing(search)}, {but} the rows cannot certify at most "
        f"{share} with confidence {confidence}",
        *_certifiable_share(search),
    ]


def _certifiable_share(search: Search[Any]) -> list[str]:
    """Return a line on the share that the rows could certify; empty if nothing was tested."""
    first, least = search.first_tested, search.certifiable
    if first is None or first.bound is None or least is None:
        return []
    share = f"{100 * least:.2f} %" if search.promise.kind == "differ" else f"a drop of {least:.4f}"
    return [
        f"the {first.bound.rows:,} rows can certify {share} with a probability of 80%, "
        f"if as many answers differ as with the largest size ({first.bound.differing:,} of them)"
    ]


def unseen_rows(search: Search[Any]) -> str | None:
    """Return a note that the score on the choosing rows is biased by the choice; None: it is not.

    If everything is kept, nothing was chosen.
    """
    if search.chosen is search.candidates[0]:
        return None
    if search.promise.by_answers:
        return (
            f"the size was chosen on {search.split}, so the share of answers that differ there "
            f"({search.chosen.drop:.2%}) is a little too small; the bound holds all the same"
        )
    return (
        f"the size was chosen on {search.split}, so its score there is too good: report a "
        "score on other rows"
    )


def _certifiable(search: Search[Any]) -> list[str]:
    """Return a line on the drop that the rows could certify; empty if nothing was tested."""
    first = None if search.first_tested is None else search.first_tested.bound
    if first is None:
        return []
    if search.promise.by_answers:
        return _certifiable_share(search)
    rows, differing = f"the {first.rows:,} rows", f"{first.differing:,}"
    if first.least is not None:
        few = f"the uncut model and the largest size differ on only {differing} of them"
        return [f"{rows} can certify a drop of {first.least:.4f} at best: {few}"]
    if search.certifiable is None:
        return [f"{rows} certify nothing here: {first.reason}"]
    differ = f"the uncut model and the largest size with a bound differ on {differing} of them"
    return [
        f"{rows} can certify a drop of {search.certifiable:.4f} with a probability of 80%, if the "
        f"true drop is 0 ({differ})"
    ]
