"""The texts of a promise: what rows can certify, the tables of sizes, the sentence and its scope.

The nouns come from the statistic (`Nouns`). This module returns texts and prints nothing. No torch
here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import count
from sora_cli.core.table import Cell, Column, Table
from sora_cli.core.words import first_few, shown_value
from sora_cli.recipe.task_options import BASE_MODEL
from sora_cli.search.constant import nothing_promised
from sora_cli.search.promise import SMALLEST, rounded_up
from sora_cli.search.row_set import TEST
from sora_cli.search.statistic import DIFFERING, POWER

if TYPE_CHECKING:
    from sora_cli.search.asked import Asked
    from sora_cli.search.evidence import Evidence
    from sora_cli.search.promise import Promise
    from sora_cli.search.row_set import RowSet
    from sora_cli.search.size import Size
    from sora_cli.search.statistic import Bound, BoundMethod, Nouns, Statistic

_CLASSES = 8  # that are named
NOT_ALONE = (
    "the bound is approximate, and about this number of rows: each row chooses among all test "
    "rows, so the rows depend on each other"
)
"""The reason why no bound is exact, where rows are not alone (`RowScores.rows_alone`)."""
_NOT_APART = "rows that repeat an input were not kept apart from those that test"
UNLABELLED = "unlabelled"
"""Split of rows without labels."""
_TEST_ROWS = {
    "labels": "the test rows",
    "answers": "the unlabelled ones",
    "asked": "the unlabelled ones",
}
"""The rows that a promise is about, by its basis."""
_NEXT_TOKENS = (
    "the next-token choices on given texts (a row differs if any of its choices does), not the "
    "written texts,"
)


# the sentence


def statement(evidence: Evidence) -> str:
    """Return the promise as a sentence, or the reason for having none."""
    promise, rows, written = evidence.promise, evidence.rows[TEST], evidence.written
    nouns = evidence.nouns
    first = evidence.candidates[0].test if evidence.candidates else None
    test = first if written is None else written.test
    text = _sentence(evidence, nouns, test if test is not None and test.kept else first)
    if written is None:
        text = f"nothing is lost, as everything is kept; {text}" if first else "everything is kept"
    elif test is not None and test is not first and not test.kept:
        much = f"{'loses' if test.drop > 0 else 'gains'} {nouns.amount(abs(test.drop))} on"
        much = f"differs on {nouns.amount(test.drop)} of" if nouns.counts else much
        text += f"; the written size {much} these rows"
    told = test if test is not None and test.kept else first
    text += "" if told is None else evidence.statistic.remark(told, promise)
    text += _agreement(evidence.asked)
    text += as_they_come(promise, nouns, rows, None if test is None else test.every)
    if test is not None and test.kept:
        classes = rows.classes or {}
        text += kept_by_constant(promise, nouns, classes, evidence.full.test)
    text = f"{_changed(evidence.asked)}{text}"
    return text if evidence.bound.rows_alone else f"{text}; {NOT_ALONE}"


def _agreement(asked: Asked | None) -> str:
    """Return words on the rows that two people labelled; "" if there are none."""
    if asked is None or not asked.twice:
        return ""
    return f"; two people labelled {asked.twice} rows and agree on {asked.agreed} of them"


def _changed(asked: Asked | None) -> str:
    """Return the reason why nothing is promised, where labels were changed; else ""."""
    if asked is None or not asked.changed:
        return ""
    rows = (
        f"the label of {len(asked.changed)} rows was" if len(asked.changed) > 1 else "a label was"
    )
    return f"{rows} changed after it had been read, so nothing is promised; otherwise: "


def _sentence(evidence: Evidence, nouns: Nouns, test: Bound | None) -> str:
    """Return the sentence of one of three outcomes: certified, not tested, failed."""
    promise, rows = evidence.promise, evidence.rows[TEST]
    inputs = _inputs(rows, labels=nouns.labels or promise.kind == "differ")
    if test is None:
        text = f"{inputs} cannot show that {nouns.promised}"
        least = evidence.statistic.best_case(rows.rows, promise.confidence)
        if least is None:
            return text
        return (
            f"{text}: the smallest {nouns.loss} they can certify, if no answer differs, is "
            f"{nouns.amount(least)}"
        )
    seen = f"on {inputs}: {test.drop:+.4f}"
    if nouns.counts:
        seen = f"{count(test.differing or 0)} of {inputs} {nouns.differ}"
    if not nouns.because and test.refused is None:
        seen = f"bound {nouns.amount(test.upper)}{': ' if nouns.counts else ', '}{seen}"
    share = f"{100 * test.upper:.2f} %"
    because = f", because {nouns.because.format(share)}" if nouns.because else ""
    if test.kept:
        sure = f"with {promise.confidence:.0%} confidence"
        return f"{sure} {nouns.promised}{nouns.end}{because} ({seen})"
    if test.refused is not None:
        return f"no bound of the {nouns.loss} can be computed: {test.refused} ({seen})"
    gates = evidence.command == "verify"
    if evidence.worse and test.lower is not None:
        sure = f"with {promise.confidence:.0%} confidence"
        shown = f"at least {nouns.amount(test.lower)}, {seen}"
        fault = "differ more" if promise.kind == "differ" else "be worse"
        return f"B is shown to {fault}: {sure} {nouns.broken}{nouns.end} ({shown})"
    start = "it is not shown" if gates else "no size passed its test: of the largest"
    return (
        f"{start}{': ' if gates else ', '}{nouns.may.format(nouns.amount(test.upper))}"
        f"{nouns.end}{because}, and {nouns.tolerated} is tolerated ({seen})"
    )


def scope(evidence: Evidence) -> str:
    """Return the adapter, run and rows that a certificate is about."""
    promise, test = evidence.promise, evidence.rows[TEST]
    about = "B" if evidence.command == "verify" else "the written adapter"
    if promise.kind == "differ":
        answers = _NEXT_TOKENS if promise.next_tokens else "answers, whether they are right or not,"
        about = f"{answers} of {about}"
    against = "this training run" if evidence.command == "auto" else evidence.full.name
    rows = "rows" if test.held is None else "distinct inputs"
    pair = f"{about} beside A" if evidence.command == "verify" else f"{about}, {against}"
    text = (
        f"{pair}, and {rows} drawn like {_TEST_ROWS[promise.basis]}; not another seed, "
        "other data, or rows of another kind"
    )
    text = text if test.held is not None else f"{text}; {_NOT_APART}"
    reference = (evidence.recipe or {}).get("task", {}).get("reference")
    if evidence.base is not None:
        reference = evidence.base.reference
    if reference is not None:
        alone = reference == BASE_MODEL
        whole = "the base model alone" if alone else f"the base model with {reference}"
        text += f"; its rewards are measured against {whole}"
    return text + _without_rows(test.classes or {})


def _inputs(rows: RowSet, *, labels: bool) -> str:
    """Return the number of test rows in words; they are distinct inputs where repeats do not test.

    Args:
        labels: False: of rows without labels.
    """
    without = "" if labels else " without labels"
    if rows.held is None:
        return f"{rows.rows:,} rows{without}"
    seen = " that training has not seen" if rows.known else ""
    return f"{rows.rows:,} distinct inputs{without}{seen}"


def as_they_come(promise: Promise, nouns: Nouns, rows: RowSet, drop: float | None) -> str:
    """Return the end of a sentence on all test rows, where some repeat an input; else "".

    Args:
        drop: on all of them, without a bound; None: not measured.
    """
    if rows.held is None or rows.held == rows.rows:
        return ""
    share = (rows.held - rows.rows) / rows.held
    text = f"; {share:.1%} of the {rows.held:,} test rows repeat an input"
    if drop is None:
        return text
    figure = f"{100 * drop:.2f} % of the answers differ" if nouns.counts else f"it is {drop:+.4f}"
    more = ", which is MORE THAN PROMISED" if not drop <= promise.max_drop else ""
    return f"{text}, and over all of them as they come {figure}{more}"


def _without_rows(classes: Mapping[str, int]) -> str:
    """Return words on the classes that no test row has, of which a promise says nothing."""
    absent = [shown_value(name) for name, rows in classes.items() if not rows]
    if not absent:
        return ""
    named = first_few(absent, _CLASSES)
    return (
        f"; nothing about {len(absent)} of {len(classes)} classes, of which no row tests: {named}"
    )


def kept_by_constant(
    promise: Promise, nouns: Nouns, classes: Mapping[str, int], full: float
) -> str:
    """Return words on one class as the answer to every row, if it keeps the promise, too."""
    if nouns.counts or not classes:
        return ""
    nothing = nothing_promised(promise.metric, promise.max_drop, classes, full=full)
    return "" if nothing is None else f"; {nothing}"


# beforehand


def promise_lines(
    promise: Promise, statistic: Statistic, bound: BoundMethod, rows: int, *, more: str = ""
) -> Iterator[str]:
    """Yield lines on a promise, and on what a number of test rows can certify of it.

    Args:
        more: a sentence on the number of rows that the promise needs.
    """
    nouns = statistic.nouns(promise)
    promised = f"promise: a drop of at most {promise.max_drop:g} ({promise.given})"
    if promise.kind == "differ":
        promised = f"promise: {nouns.promised}"
    promised += f", with {promise.confidence:.0%} confidence"
    of_these = _lines_on_counts if nouns.counts else _lines_on_drops
    yield from of_these(promise, nouns, bound, rows, promised, more)
    if not bound.rows_alone:
        yield NOT_ALONE


def _lines_on_drops(
    promise: Promise, nouns: Nouns, bound: BoundMethod, rows: int, promised: str, more: str
) -> Iterator[str]:
    del nouns
    smallest = bound.smallest_drop
    if smallest is None:
        yield f"{promised}; the bound is {bound.method}"
        yield "the smallest drop that the test rows can certify is known once sizes are scored"
        return
    best = "" if bound.best_case is None else f", and at best {bound.best_case:.4f}"
    yield f"{promised}; {count(rows)} test rows can be expected to certify {smallest:.4f}{best}"
    if smallest > promise.max_drop:
        yield (
            "WARNING: too few test rows to certify this drop, unless the two models almost always "
            "agree: there may be no certificate (exit code 3)"
        )
        fits = f"--max-drop {SMALLEST} ({rounded_up(smallest):g})"
        yield f"these rows can be expected to certify {fits}{more and f'; {more}'}"


def _lines_on_counts(
    promise: Promise, nouns: Nouns, bound: BoundMethod, rows: int, promised: str, more: str
) -> Iterator[str]:
    from sora_cli.search.binomial import allowed_rows, rows_for_none  # scipy

    del more
    allowed = allowed_rows(promise.max_drop, rows, promise.confidence)
    tested = f"{count(rows)} test rows"
    if allowed is not None:
        few = f"at most {count(allowed)}" if allowed else "none"
        how = nouns.differ if promise.next_tokens else "are answered differently"
        yield f"{promised}; certified if {few} of {tested} {how}"
    else:
        yield promised
        need = rows_for_none(promise.max_drop, promise.confidence)
        takes = (
            "no number of rows is enough" if need is None else f"it takes {count(need)} at least"
        )
        least = 100 * (bound.best_case or 0)
        option = "--max-differ" if promise.kind == "differ" else "a drop of"
        takes += (
            f", and these can certify {option} {math.ceil(10 * least) / 10:g}% at best: the "
            "adapter will have no certificate (exit code 3)"
        )
        yield f"WARNING: {tested} cannot certify this, even if no answer differs; {takes}"
    if promise.kind == "drop" and bound.smallest_drop is not None:
        yield (
            f"these rows can be expected to certify {bound.smallest_drop:.4f}, if {DIFFERING:.1%} "
            "of the rows are answered differently and the true drop is 0"
        )


def expected_line(nouns: Nouns, rows: int, drop: float, certifiable: float) -> str:
    """Return a line on the outcome that screening expects of a size.

    Args:
        rows: number of test rows.
        drop, certifiable: expected drop before healing, and what the rows can certify beside it.
    """
    if nouns.counts:
        return (
            f"{100 * drop:.2f} % of the {nouns.things} are expected to {nouns.differ} before "
            f"healing; {rows:,} test rows could then certify {100 * (drop + certifiable):.2f} %"
        )
    if not nouns.labels:
        return (
            f"a drop of {drop:+.4f} is expected before healing; if each row that differs is lost, "
            f"{drop + certifiable:.4f} can still be certified"
        )
    return (
        f"a drop of {drop:+.4f} is expected before healing; {rows:,} test rows can be expected to "
        f"certify {certifiable:.4f}"
    )


def tested_line(test: Bound, nouns: Nouns, promise: Promise) -> str:
    """Return a line on the result of a size's test."""
    end = ": no smaller size is tested" if test.failed else ""
    if nouns.counts:
        return (
            f"differing {nouns.things}: {test.differing or 0:,} ({100 * test.drop:.2f} %), "
            f"bound {100 * test.upper:.2f} %, promise {100 * promise.max_drop:g} %: "
            f"{test.verdict}{end}"
        )
    bound = f"bound {test.upper:.4f}" if test.refused is None else f"no bound: {test.refused}"
    return f"drop {test.drop:+.4f}, {bound}, promise {promise.max_drop:g}: {test.verdict}{end}"


# afterwards


def size_verdict(evidence: Evidence, number: int, *, reason: bool = False) -> str:
    """Return the verdict on a size in a few words.

    Args:
        reason: if it has no bound, add the reason.
    """
    test = evidence.candidates[number].test
    verdict = "not tested" if test is None else test.verdict
    if reason and test is not None and test.refused is not None:
        verdict = f"{verdict}: {test.refused}"
    return f"{verdict}, written" if number == evidence.chosen else verdict


def size_table(evidence: Evidence) -> Table:
    """Return a table of the sizes that were made, from the largest to the smallest."""
    promise, rows, nouns = evidence.promise, evidence.rows[TEST], evidence.nouns
    metric = evidence.statistic.metric or promise.metric
    columns: list[Column | str] = [
        "size", Column("components", count), Column("parameters", count), "largest rank",
        Column(metric, ".4f"), Column(nouns.column, nouns.form), Column("at most", nouns.form), "",
    ]  # fmt: skip
    full = evidence.full
    whole = (None, None, None) if full.name == "the model" else _size(full)
    kept = "written" if evidence.chosen is None else None
    lines: list[list[Any]] = [[full.name, *whole, full.test, None, None, kept]]
    shares = {size.max_params: size.share for size in evidence.screened}
    for number, size in enumerate(evidence.candidates):
        test = size.test
        figures: list[float | Cell | None] = [None, None, None]
        if test is not None:
            upper = Cell(None, "-") if math.isnan(test.upper) else test.upper
            figures = [test.score, test.drop, upper]
        own = size.components / max(full.components, 1)
        own = size.parameters / full.parameters if full.parameters else own
        share = own if size.max_params is None else shares.get(size.max_params, own)
        lines.append([f"{share:.1%}", *_size(size), *figures, size_verdict(evidence, number)])
    sure = f"at most: with {promise.confidence:.0%} confidence"
    split = "test rows" if evidence.command == "auto" else _of_split(rows.split)
    return Table(f"{metric} on {rows.rows:,} {split}; {sure}", columns, lines)


def gate_table(evidence: Evidence, names: Sequence[str]) -> Table:
    """Return a table of two models that were compared.

    Args:
        names: the user's names for them.
    """
    promise, rows, nouns = evidence.promise, evidence.rows[TEST], evidence.nouns
    metric = evidence.statistic.metric or promise.metric
    columns: list[Column | str] = [
        "model", Column(metric, ".4f"), Column(nouns.column, nouns.form),
        Column("at least", nouns.form), Column("at most", nouns.form),
    ]  # fmt: skip
    (b,) = evidence.candidates
    figures: list[float | Cell | None] = [None, None, None, None]
    if b.test is not None:
        none = Cell(None, "-")
        upper = none if math.isnan(b.test.upper) else b.test.upper
        lower = none if b.test.lower is None else b.test.lower
        figures = [b.test.score, b.test.drop, lower, upper]
    lines: list[list[Any]] = [
        [f"A: {names[0]}", evidence.full.test, None, None, None],
        [f"B: {names[1]}", *figures],
    ]
    sure = f"at least, at most: each with {promise.confidence:.0%} confidence"
    return Table(f"{metric} on {rows.rows:,} {_of_split(rows.split)}; {sure}", columns, lines)


def _of_split(split: str) -> str:
    return "unlabelled rows" if split == UNLABELLED else f"rows of {split}"


def untrained_line(evidence: Evidence) -> str | None:
    """Return a line on the sizes that were screened but not trained; None: all were trained."""
    trained = {size.max_params for size in evidence.candidates}
    screened = evidence.screened
    shares = [f"{size.share:.1%}" for size in screened if size.max_params not in trained]
    if not shares:
        return None
    few = f"{len(shares)} other sizes were" if len(shares) > 1 else "1 other size was"
    return f"{few} scored before healing, and not trained: {', '.join(shares)}"


def verdict_lines(evidence: Evidence) -> Iterator[str]:
    """Yield the verdict, and where nothing smaller was certified what the rows could certify."""
    yield f"kept: {evidence.saved}"
    yield f"{evidence.status}: {evidence.statement}"
    first, nouns = evidence.first_tested, evidence.nouns
    written = evidence.written
    if (written is not None and evidence.certified) or first is None:
        return
    total, differing = evidence.rows[TEST].rows, first.differing or 0
    rows, seen = f"the {total:,} rows", f"the largest size differs on {count(differing)} of them"
    if first.least is not None:
        yield f"{rows} can certify {nouns.amount(first.least)} at best: {seen}"
        return
    sure = evidence.promise.confidence
    least = evidence.statistic.smallest(total, sure, differing / total)
    least = evidence.bound.smallest_drop if least is None else least
    if least is not None:
        amount = nouns.amount(least)
        yield f"{rows} can certify {amount} with a probability of {POWER:.0%}, if {seen}"


def unseen_rows(evidence: Evidence) -> str | None:
    """Return a note that the score on the choosing rows is biased by the choice; None: it is not.

    If everything is kept, nothing was chosen.
    """
    written, split = evidence.written, evidence.rows[TEST].split
    if written is None or written.test is None:
        return None
    if evidence.nouns.counts:
        return (
            f"the size was chosen on {split} rows, so the share of answers that differ there "
            f"({written.test.drop:.2%}) is a little too small; the bound holds all the same"
        )
    named = _of_split(split) if split == UNLABELLED else split
    return (
        f"the size was chosen on {named}, so its score there is too good: report a "
        "score on other rows"
    )


def _size(size: Size) -> tuple[int, int, int]:
    return size.components, size.parameters, size.largest_rank
