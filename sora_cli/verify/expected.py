"""The certificate that a run's files give, to compare the stored one with, field by field.

The promise, the seeds and the base are those of the run's report; the sizes those of the adapters;
the bound is computed again, and the conclusion drawn again. Scores stay as they are stored: those
are compared with what is scored here (`verify/scored.py`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from methods.registry import size_keys
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import RunReport, read_report
from sora_cli.search.certifiable import Certifiable
from sora_cli.search.certificate import (
    TEST,
    Certificate,
    Half,
    RowSet,
    StoredCertificate,
    directory_of,
    failed,
)
from sora_cli.search.promise import promise_of
from sora_cli.search.size import Size, size_of

ROUNDING = 1e-6
"""By how much numbers may be apart, as a share of the larger or of 1, that are the same."""


def close(one: float, other: float, rounding: float = ROUNDING) -> bool:
    """Tell whether two numbers are the same but for rounding; two that are none are, too."""
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return math.isclose(one, other, rel_tol=rounding, abs_tol=rounding)


@dataclasses.dataclass(frozen=True)
class Reports:
    """The reports of a run and its parts.

    Attributes:
        written: of the written adapter.
        full: of the run at full rank.
        sizes: of each candidate.
    """

    written: RunReport
    full: RunReport
    sizes: list[RunReport]


def read_reports(run: Path, candidates: int, half: int | None = None) -> Reports | list[str]:
    """Return the reports of a run and its parts; or what is missing, a sentence each.

    Args:
        half: of cross-fitting, the half whose parts these are.
    """
    places = [run, *(run / directory_of(i, half) for i in (None, *range(candidates)))]
    found = [read_report(place) for place in places]
    known = [report for report in found if report is not None and _is_whole(report)]
    if len(known) < len(found):
        missing = (p for p, r in zip(places, found, strict=True) if r is None or not _is_whole(r))
        return [f"{place / REPORT} is gone, or does not say what was trained" for place in missing]
    return Reports(known[0], known[1], known[2:])


def _is_whole(report: RunReport) -> bool:
    return report.steps is not None and any(rank.start for rank in report.ranks.values())


def expected(
    agreed: Certificate,
    recipe: Recipe,
    reports: Sequence[Reports],
    rows: Mapping[str, RowSet],
    certifiable: Certifiable,
    sizes: Sequence[Sequence[Size]],
    final: Size | None,
) -> Certificate:
    """Return the certificate that the run's files give.

    Args:
        agreed: the stored one, for its digests and what was screened, with the scores that are to
            be expected of it.
        recipe: the run's.
        reports: of the runs that were tested; of cross-fitting, of each half's.
        rows: of all parts, as they are here.
        certifiable: what the test rows can certify.
        sizes: of the candidates' adapters, for each of `reports`.
        final: size of the written adapter, if it was trained after the tests.
    """
    promise = promise_of(recipe).settled(certifiable, rows[TEST].rows)
    block, written = recipe.auto, reports[0].written
    assert block is not None
    parts = agreed.halves or [Half(full=agreed.full, candidates=agreed.candidates)]
    tested = [
        _tested(part, reports[i], sizes[i], promise.serve, i + 1 if agreed.halves else None)
        for i, part in enumerate(parts)
    ]
    last = agreed.final
    if last is not None and final is not None:
        known = {"max_params": _max_params(written), "steps": written.steps}
        last = last.model_copy(update={**final.model_dump(), **known})
    return Certificate(
        promise=promise,
        bound=certifiable.screened(agreed.screened),
        full=tested[0].full,
        screened=agreed.screened,
        candidates=tested[0].candidates,
        halves=tested if agreed.halves else [],
        final=last,
        rows=dict(rows),
        seeds={"training": recipe.training.seed, "rows": block.seed},
        base=written.base,
    )


def _tested(
    agreed: Half,
    reports: Reports,
    sizes: Sequence[Size],
    serve: str | None,
    half: int | None,
) -> Half:
    """Return full rank and the candidates that the files of one set of runs give."""
    full = {
        **_full_size(reports.full, serve).model_dump(),
        "r_max": max(rank.start for rank in reports.full.ranks.values()),
        "directory": directory_of(None, half),
        "steps": reports.full.steps,
        "cut_at": _left_at(reports.sizes[0]),
    }
    candidates = [
        candidate.model_copy(
            update={
                **sizes[i].model_dump(),
                "max_params": _max_params(reports.sizes[i]),
                "directory": directory_of(i, half),
                "heal_steps": (reports.sizes[i].steps or 0) - _left_at(reports.sizes[i]),
            }
        )
        for i, candidate in enumerate(agreed.candidates)
    ]
    return Half(full=agreed.full.model_copy(update=full), candidates=candidates)


def _full_size(report: RunReport, serve: str | None) -> Size:
    """Return the size at full rank, where every layer has as many components."""
    ranks = [rank.start for rank in report.ranks.values()]
    each = report.parameters.adapter_start // max(ranks)  # one component in every layer
    size = size_of({"": max(ranks)}, {"": each}, serve)
    return size.model_copy(update={"components": sum(ranks)})


def _max_params(report: RunReport) -> int:
    (key,), method = size_keys(), report.recipe.get("method")
    found = method.get(key) if isinstance(method, dict) else None
    return found if isinstance(found, int) else 0


def _left_at(report: RunReport) -> int:
    """Return the step after which a candidate's run left the run at full rank."""
    return (report.start.step or 0) if report.start is not None else 0


def unreported(found: StoredCertificate, report: RunReport) -> Iterator[str]:
    """Yield a sentence for each score of the written adapter that its report has otherwise."""
    reported = {s: m.score for s, m in found.candidates[found.chosen].reported.items()}
    for split, score in (reported if found.final is None else found.final.reported).items():
        known = report.metrics.get(split, {}).get(found.promise.metric, math.nan)
        if not close(score, known):
            yield f"{split}: {score:.6g} in the certificate, {known:.6g} in {REPORT}"


def out_of_order(found: Certificate) -> Iterator[str]:
    """Yield what the tests of a fixed order cannot have given, a sentence each."""
    named = [size.max_params for size in found.screened if size.named]
    tried = [size.max_params for size in found.candidates]
    ended = failed(found.candidates)
    if tried != named[: len(tried)] or tried != sorted(tried, reverse=True):
        yield f"sizes of {named} parameters were named, and {tried} were trained, in this order"
    elif ended is None and len(tried) < len(named):
        yield f"{len(named)} sizes were named, and no test of {len(tried)} ended the testing"
    elif ended is not None and ended + 1 < len(tried):
        yield f"{directory_of(ended + 1)} was tested after a test had failed"


def same_words(stored: StoredCertificate, here: Certificate) -> bool:
    """Tell whether a stored certificate is written in the sentences of this version."""
    return stored.schema_version == here.schema_version


def unlike(stored: StoredCertificate, here: Certificate) -> Iterator[str]:
    """Yield a sentence for each field that is not what the run's files give."""
    words = set() if same_words(stored, here) else {"schema_version", "statement", "scope", "saved"}
    # NaN is null
    one, other = (json.loads(c.model_dump_json(exclude=words)) for c in (stored, here))
    for name, was, now in _leaves(one, other, ""):
        yield f"{name}: {_shown(was)} in the certificate, which should be {_shown(now)}"


def _leaves(one: Any, other: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both values of each leaf that differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**other, **one}:
            yield from _leaves(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list):
        for i, (a, b) in enumerate(zip_longest(one, other)):
            yield from _leaves(a, b, f"{name}[{i}]")
    elif not _same(one, other):
        yield name, one, other


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return close(one, other)
    return type(one) is type(other) and bool(one == other)


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
