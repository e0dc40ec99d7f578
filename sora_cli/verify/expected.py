"""The certificate that follows from a run's files, to compare with the stored one field by field.

The promise, the seeds and the base come from the run's report, the sizes from the adapters. The
bound is computed again, and the conclusion drawn again. Scores keep their stored values: they are
compared with new scores in `verify/scored.py`.
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
from sora_cli.search.certificate import Certificate, StoredCertificate, directory_of, failed
from sora_cli.search.promise import promise_of
from sora_cli.search.row_set import TEST, RowSet
from sora_cli.search.size import Size, size_of

ROUNDING = 1e-6
"""Largest difference of equal numbers, as a share of the larger one or of 1."""


def close(one: float, other: float, rounding: float = ROUNDING) -> bool:
    """Return true if two numbers are equal but for rounding; NaN equals NaN."""
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


def read_reports(run: Path, candidates: int) -> Reports | list[str]:
    """Return the reports of a run and its parts; or a sentence for each missing one."""
    places = [run, *(run / directory_of(i) for i in (None, *range(candidates)))]
    reports = [read_report(place) for place in places]
    complete = [report for report in reports if report is not None and _is_complete(report)]
    if len(complete) < len(reports):
        missing = (
            p for p, r in zip(places, reports, strict=True) if r is None or not _is_complete(r)
        )
        return [f"{place / REPORT} is missing, or describes no training" for place in missing]
    return Reports(complete[0], complete[1], complete[2:])


def _is_complete(report: RunReport) -> bool:
    return report.steps is not None and any(rank.start for rank in report.ranks.values())


def expected(
    agreed: Certificate,
    recipe: Recipe,
    reports: Reports,
    rows: Mapping[str, RowSet],
    certifiable: Certifiable,
    sizes: Sequence[Size],
) -> Certificate:
    """Return the certificate that follows from the run's files.

    Args:
        agreed: the stored certificate, for its digests and screening, with the scores that the new
            certificate shall have.
        recipe: the run's.
        rows: of all parts, as read here.
        certifiable: the drops that the test rows can certify.
        sizes: of the candidates' adapters.
    """
    promise = promise_of(recipe).settled(certifiable, rows[TEST].rows)
    block = recipe.auto
    assert block is not None
    full = {
        **_full_size(reports.full, promise.serve).model_dump(),
        "r_max": max(rank.start for rank in reports.full.ranks.values()),
        "directory": directory_of(None),
        "steps": reports.full.steps,
        "cut_at": _left_at(reports.sizes[0]),
    }
    candidates = [
        candidate.model_copy(
            update={
                **sizes[i].model_dump(),
                "max_params": _max_params(reports.sizes[i]),
                "directory": directory_of(i),
                "heal_steps": (reports.sizes[i].steps or 0) - _left_at(reports.sizes[i]),
            }
        )
        for i, candidate in enumerate(agreed.candidates)
    ]
    return Certificate(
        promise=promise,
        bound=certifiable.screened(agreed.screened),
        full=agreed.full.model_copy(update=full),
        screened=agreed.screened,
        candidates=candidates,
        rows=dict(rows),
        seeds={"training": recipe.training.seed, "rows": block.seed},
        base=reports.written.base,
    )


def _full_size(report: RunReport, serve: str | None) -> Size:
    """Return the size at full rank; every layer has the same number of components there."""
    ranks = [rank.start for rank in report.ranks.values()]
    each = report.parameters.adapter_start // max(ranks)  # one component in every layer
    size = size_of({"": max(ranks)}, {"": each}, serve)
    return size.model_copy(update={"components": sum(ranks)})


def _max_params(report: RunReport) -> int:
    (key,), method = size_keys(), report.recipe.get("method")
    budget = method.get(key) if isinstance(method, dict) else None
    return budget if isinstance(budget, int) else 0


def _left_at(report: RunReport) -> int:
    """Return the step after which a candidate's run left the run at full rank."""
    return (report.start.step or 0) if report.start is not None else 0


def unreported(certificate: StoredCertificate, report: RunReport) -> Iterator[str]:
    """Yield a sentence for each score of the certificate that its report contradicts."""
    for split, measured in certificate.candidates[certificate.chosen].reported.items():
        in_report = report.metrics.get(split, {}).get(certificate.promise.metric, math.nan)
        if not close(measured.score, in_report):
            yield f"{split}: {measured.score:.6g} in the certificate, {in_report:.6g} in {REPORT}"


def out_of_order(certificate: Certificate) -> Iterator[str]:
    """Yield a sentence for each breach of the fixed order of tests, largest size first."""
    named = [size.max_params for size in certificate.screened if size.named]
    tried = [size.max_params for size in certificate.candidates]
    ended = failed(certificate.candidates)
    if tried != named[: len(tried)] or tried != sorted(tried, reverse=True):
        yield f"screening chose sizes of {named} parameters, {tried} were trained, in this order"
    elif ended is None and len(tried) < len(named):
        yield f"screening chose {len(named)} sizes, {len(tried)} were tested, and none failed"
    elif ended is not None and ended + 1 < len(tried):
        yield f"{directory_of(ended + 1)} was tested after a test had failed"


def same_words(stored: StoredCertificate, here: Certificate) -> bool:
    """Return true if a stored certificate has the sentences of this version."""
    return stored.schema_version == here.schema_version


def unlike(stored: StoredCertificate, here: Certificate) -> Iterator[str]:
    """Yield a sentence for each field of a certificate that differs from the run's files."""
    words = set() if same_words(stored, here) else {"schema_version", "statement", "scope", "saved"}
    # NaN is null
    one, other = (json.loads(c.model_dump_json(exclude=words)) for c in (stored, here))
    for name, was, now in _leaves(one, other, ""):
        yield f"{name}: {_as_json(was)} in the certificate, but it should be {_as_json(now)}"


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
    # counts must be equal: only numbers that were computed may differ by rounding
    if isinstance(one, float) and isinstance(other, float):
        return close(one, other)
    return type(one) is type(other) and bool(one == other)


def _as_json(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
