"""The sentences of a certificate: the promise or the reason for having none, and its scope.

They are computed from the figures whenever a certificate is made or read. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sora_cli.core.words import first_few, shown_value
from sora_cli.search.constant import nothing_promised

if TYPE_CHECKING:
    from sora_cli.search.certificate import BoundMethod, SizeTest
    from sora_cli.search.promise import Promise
    from sora_cli.search.row_set import RowSet

_CLASSES = 8  # that are named
NOT_ALONE = (
    "the bound is approximate, and about this number of rows: each row chooses among all test "
    "rows, so the rows depend on each other"
)
"""The reason why no bound is exact, where rows are not alone (`RowScores.rows_alone`)."""
_SCOPE = (
    "the written adapter, this training run, and {rows} drawn like {like}; not another seed, "
    "other data, or rows of another kind"
)
_NOT_APART = "rows that repeat an input were not kept apart from those that test"
_TEST_ROWS = {"labels": "the test rows", "answers": "the unlabelled ones"}
"""The rows that a promise is about, by its basis."""
_SCOPE_OF_ANSWERS = (
    "{answers} of the written adapter, this training run, and {rows} drawn like the unlabelled "
    "ones; not another seed, other data, or rows of another kind"
)
_NEXT_TOKENS = (
    "the next-token choices on given texts (a row differs if any of its choices does), not the "
    "written texts,"
)


def inputs(rows: RowSet, *, labels: bool = True) -> str:
    """Return the number of test rows in words; they are distinct inputs where repeats do not test.

    Args:
        labels: False: of rows without labels.
    """
    without = "" if labels else " without labels"
    if rows.held is None:
        return f"{rows.rows:,} rows{without}"
    return f"{rows.rows:,} distinct inputs{without} that training has not seen"


def as_they_come(promise: Promise, *, rows: int, held: int | None, drop: float | None) -> str:
    """Return the end of a sentence on all test rows, where some repeat an input; else "".

    Args:
        rows: number of the rows that test.
        held: number of all test rows; None: all of them test.
        drop: on all of them, without a bound; None: not measured.
    """
    if held is None or held == rows:
        return ""
    text = f"; {(held - rows) / held:.1%} of the {held:,} test rows repeat an input"
    if drop is None:
        return text
    figure = f"it is {drop:+.4f}"
    if promise.by_answers:
        figure = f"{100 * drop:.2f} % of the answers differ"
    more = ", which is MORE THAN PROMISED" if not drop <= promise.max_drop else ""
    return f"{text}, and over all of them as they come {figure}{more}"


def scope(promise: Promise, *, distinct: bool) -> str:
    """Return the adapter, run and rows that a promise is about.

    Args:
        distinct: repeated rows do not test.
    """
    answers = _NEXT_TOKENS if promise.next_tokens else "answers, whether they are right or not,"
    text = (_SCOPE_OF_ANSWERS if promise.kind == "differ" else _SCOPE).format(
        rows="distinct inputs" if distinct else "rows",
        like=_TEST_ROWS[promise.basis],
        answers=answers,
    )
    return text if distinct else f"{text}; {_NOT_APART}"


def without_rows(classes: Mapping[str, int]) -> str:
    """Return words on the classes that no test row has, of which a promise says nothing."""
    absent = [shown_value(name) for name, rows in classes.items() if not rows]
    if not absent:
        return ""
    named = first_few(absent, _CLASSES)
    return (
        f"; nothing about {len(absent)} of {len(classes)} classes, of which no row tests: {named}"
    )


def kept_by_constant(promise: Promise, classes: Mapping[str, int], full: float) -> str:
    """Return words on one class as the answer to every row, if it keeps the promise, too."""
    if promise.by_answers or not classes:
        return ""
    nothing = nothing_promised(promise.metric, promise.max_drop, classes, full=full)
    return "" if nothing is None else f"; {nothing}"


def drop_by_labels(
    promise: Promise, bound: BoundMethod, test: SizeTest | None, rows: RowSet
) -> str:
    """Return the certified promise as a sentence, or the reason for having none.

    Args:
        test: test of the written size; None: it was not tested.
        rows: test rows.
    """
    if test is None:
        promised = f"{promise.metric} is at most {promise.max_drop:g} worse"
        text = f"{inputs(rows)} cannot show that {promised}"
        if not bound.exact:
            return text
        # imported here: scipy is slow to import, and most certificates are read without it
        from sora_cli.search.paired import exact_bound

        least = exact_bound(0, 0, rows.rows, promise.confidence)
        return f"{text}: the smallest loss they can certify, if no answer differs, is {least:.4f}"
    if test.kept:
        return (
            f"with {promise.confidence:.0%} confidence {promise.metric} is at most "
            f"{promise.max_drop:g} worse than at full rank (bound {test.upper:.4f}, on "
            f"{inputs(rows)}: {test.drop:+.4f})"
        )
    if test.refused is not None:
        return f"no bound of the loss can be computed: {test.refused}"
    return (
        f"no size passed its test: of the largest, {promise.metric} may be {test.upper:.4f} "
        f"worse than at full rank, and {promise.max_drop:g} is tolerated (on {inputs(rows)}: "
        f"{test.drop:+.4f})"
    )


def drop_by_answers(promise: Promise, test: SizeTest | None, rows: RowSet) -> str:
    """Return the promise about a drop that answers test, as a sentence; see `drop_by_labels`."""
    promised = f"{promise.metric} is at most {promise.max_drop:g} worse"
    if test is None:
        from sora_cli.search.agreement import share_bound  # scipy, as above

        least = share_bound(0, rows.rows, promise.confidence)
        return (
            f"{inputs(rows, labels=False)} cannot show that {promised}: the smallest loss they can "
            f"certify, if no answer differs, is {least:.4f}"
        )
    differ = f"at most {100 * test.upper:.2f} % of the answers differ"
    seen = f"{test.differing or 0:,} of {inputs(rows, labels=False)} differ"
    if test.kept:
        return (
            f"with {promise.confidence:.0%} confidence {promised} than at full rank, because "
            f"{differ} ({seen})"
        )
    return (
        f"no size passed its test: of the largest, {promise.metric} may be {test.upper:.4f} worse "
        f"than at full rank, because {differ}, and {promise.max_drop:g} is tolerated ({seen})"
    )


def on_answers(promise: Promise, test: SizeTest | None, rows: RowSet) -> str:
    """Return the certified share of differing answers as a sentence; see `drop_by_labels`."""
    share = f"{100 * promise.max_drop:g} %"
    if test is None:
        from sora_cli.search.agreement import share_bound  # scipy, as above

        least = 100 * share_bound(0, rows.rows, promise.confidence)
        return (
            f"{inputs(rows)} cannot show that at most {share} of the {promise.compared} "
            f"{promise.differ}: the smallest share they can certify, if none differs, is "
            f"{least:.2f} %"
        )
    seen = f"bound {100 * test.upper:.2f} %: {test.differing or 0:,} of {inputs(rows)} differ"
    if test.kept:
        return (
            f"with {promise.confidence:.0%} confidence at most {share} of the {promise.compared} "
            f"{promise.differ} from those at full rank ({seen})"
        )
    return (
        f"no size passed its test: of the largest, more than {share} of the {promise.compared} may "
        f"{promise.differ} from those at full rank ({seen})"
    )
