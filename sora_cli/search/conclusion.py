"""The conclusion of a certificate: all that follows from its figures, and the sentences.

The promise, the sizes and their bounds are figures. Whether a size passed, which one is written and
what that promises follow from them, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sora_cli.search.size import saving

if TYPE_CHECKING:
    from sora_cli.search.certificate import Bound, Candidate, Promise, StoredCertificate

SCOPE = (
    "the written adapter, this training run, and rows drawn like the test rows; not another seed, "
    "other data, or rows of another kind"
)


def conclude(found: StoredCertificate) -> None:
    """Set what follows from a certificate's figures, whatever it was before."""
    promise, candidates, rows = found.promise, found.candidates, found.rows["test"].rows
    for test in (size.test for size in candidates if size.test is not None):
        test.kept = test.upper <= promise.max_drop
        test.passed_over = test.passed_over and not test.kept and not found.bound.exact
    found.chosen = choose(candidates)
    written = candidates[found.chosen]
    kept = written.test is not None and written.test.kept
    found.status = "certified" if kept else "not certified"
    found.statement = (
        _kept(promise, written, rows) if kept else _not_kept(promise, found.bound, written, rows)
    )
    found.scope = SCOPE
    found.next_smaller = failed(candidates) if kept else None
    found.saved = saving(written, found.full, promise.serve)
    found.adapter = written.digest


def choose(candidates: Sequence[Candidate]) -> int:
    """Return which candidate is written: the last that passed its test, else the first."""
    passed = [i for i, size in enumerate(candidates) if size.test is not None and size.test.kept]
    return passed[-1] if passed else 0


def failed(candidates: Sequence[Candidate]) -> int | None:
    """Return the candidate whose test ended the testing; None: none failed."""
    tests = ((i, size.test) for i, size in enumerate(candidates))
    return next((i for i, test in tests if test is not None and test.failed), None)


def _kept(promise: Promise, size: Candidate, rows: int) -> str:
    assert size.test is not None
    return (
        f"with {promise.confidence:.0%} confidence {promise.metric} is at most "
        f"{promise.max_drop:g} worse than at full rank (bound {size.test.upper:.4f}, on "
        f"{rows:,} rows: {size.test.drop:+.4f})"
    )


def _not_kept(promise: Promise, bound: Bound, size: Candidate, rows: int) -> str:
    if size.test is None:
        smallest = "not known" if bound.smallest_drop is None else f"{bound.smallest_drop:.4f}"
        return (
            f"{rows:,} test rows cannot show that {promise.metric} is at most "
            f"{promise.max_drop:g} worse: the smallest loss they can certify is {smallest}"
        )
    if size.test.refused is not None:
        return f"no bound of the loss can be computed: {size.test.refused}"
    return (
        f"no size passed its test: of the largest, {promise.metric} may be {size.test.upper:.4f} "
        f"worse than at full rank, and {promise.max_drop:g} is tolerated (on {rows:,} rows: "
        f"{size.test.drop:+.4f})"
    )
