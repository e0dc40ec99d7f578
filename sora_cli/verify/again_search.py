"""A run of `sora auto` computed again, by its reports, its record and its adapters."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from methods.budgets import costs_of
from methods.registry import size_keys
from sora_cli.adapter.digest import deciding, differing_facts, result_digest
from sora_cli.adapter.directory import read_adapter
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import ADAPTER
from sora_cli.core.errors import SoraError
from sora_cli.model.base import Base
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.reading import named_base
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import RunReport, read_report
from sora_cli.run.encode import encode
from sora_cli.run.results import task_meta
from sora_cli.run.stored import load_adapted
from sora_cli.search.evidence import (
    Candidate,
    Evidence,
    Measured,
    Reference,
    directory_of,
)
from sora_cli.search.promise import promise_of
from sora_cli.search.record import FILE_NAME as RECORD
from sora_cli.search.record import read_auto
from sora_cli.search.row_set import SCREENING, TEST, RowSet
from sora_cli.search.rows import deciding_parts, deciding_rows, method_on, row_sets
from sora_cli.search.size import Size, size_of
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.search.test_rows import EncodedRows
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_scorer
from sora_cli.verify.again import Again, if_moved, loaded_again, rows_again


class SearchAgain:
    """A run of `sora auto`, by its reports, its record and its adapters."""

    def __init__(self, run: Path, overrides: Sequence[str]) -> None:
        report, record = read_report(run), read_auto(run)
        for found, name in ((report, REPORT), (record, RECORD)):
            if found is None:
                raise SoraError(f"{run / name} is missing: it says what was done")
        assert report is not None
        assert record is not None
        loaded = loaded_again(report.recipe, run / REPORT, report.name, overrides)
        self.run, self.report, self.record, self.recipe = run, report, record, loaded.recipe
        self.on = named_base(loaded)
        if self.recipe.auto is None:
            raise SoraError(f"{run / REPORT} is not the report of a sora auto run")
        self.task, self.rows = rows_again(self.recipe)
        screening, test = (self._recorded(name) for name in (SCREENING, TEST))
        with if_moved("auto.unlabelled=FILE"):
            self.held = deciding_rows(
                self.recipe, self.task, self.rows, screening.rows, test.held or test.rows,
                screening.inputs,
            )  # fmt: skip

    def _recorded(self, name: str) -> RowSet:
        rows = self.record.rows.get(name)
        if rows is None:
            raise SoraError(f"{self.run / RECORD} names no {name} rows")
        return rows

    def again(self, certificate: Evidence) -> Again:
        """Score all adapters, if they and the rows are those of the certificate."""
        found = Again(named=[size.max_params for size in self.record.named()])
        sets = row_sets(self.rows, self.held)
        found.differs += _changed_rows(certificate.rows, sets)
        known = {ADAPTER: certificate.adapter, f"{directory_of(None)}/{ADAPTER}":
                 certificate.full.digest}  # fmt: skip
        for number, size in enumerate(certificate.candidates):
            known[f"{directory_of(number)}/{ADAPTER}"] = size.digest or ""
        for folder, digest in known.items():
            found.differs += _changed(self.run / folder, digest, self.task)
        runs = [self.run / directory_of(number) for number in (None, *self._trained())]
        reports = [read_report(run) for run in runs]
        for place, report in zip(runs, reports, strict=True):
            if report is None or report.steps is None or not _starts(report):
                found.differs.append(f"{place / REPORT} is missing, or describes no training")
        if not found.differs:
            self._score(found, certificate, [report for report in reports if report is not None])
        return found

    def _trained(self) -> Iterator[int]:
        """Yield the numbers of the sizes whose runs are there."""
        number = 0
        while (self.run / directory_of(number)).is_dir():
            yield number
            number += 1

    def _score(self, found: Again, certificate: Evidence, reports: Sequence[RunReport]) -> None:
        scorer = _Scorer(self)
        whole = scorer.scored(directory_of(None), reported=True)
        full, block = whole.test, self.recipe.auto
        assert block is not None
        asked = promise_of(self.recipe)
        bound = method_on(full, len(full), asked)
        promise, statistic = asked.settled(bound, len(full)), statistic_of(full)
        named = self.record.named()
        if bound.smallest_drop is None and named:
            bound = bound.model_copy(update={"smallest_drop": named[0].certifiable})
        metric = promise.metric
        full_report, starts = reports[0], [_left_at(report) for report in reports[1:]]
        reference = Reference(
            **_full_size(full_report, promise.serve).model_dump(),
            directory=directory_of(None),
            digest=result_digest(self.run / directory_of(None) / ADAPTER) or "",
            test=statistic.score(full, full),
            r_max=max(_starts(full_report)),
            steps=full_report.steps,
            cut_at=starts[0] if starts else None,
            reported={split: scores.value for split, scores in whole.reported.items()},
        )
        candidates = []
        for number, (report, left) in enumerate(zip(reports[1:], starts, strict=True)):
            is_written = number == certificate.chosen
            small = scorer.scored(directory_of(number), reported=is_written)
            test = None
            if bound.may_pass(promise.max_drop):
                test = drop_bound(full, small.test, promise.confidence, seed=block.seed)
            reported = {
                split: Measured(
                    score=scores.value,
                    drop=promise.drop(whole.reported[split].value, scores.value),
                )
                for split, scores in small.reported.items()
            }
            candidates.append(
                Candidate(
                    **size_of(small.ranks, small.cost, promise.serve).model_dump(),
                    max_params=_max_params(report),
                    directory=directory_of(number),
                    digest=result_digest(self.run / directory_of(number) / ADAPTER),
                    heal_steps=(report.steps or 0) - left,
                    test=test,
                    reported=reported,
                )
            )
            for split, value in small.reported.items():
                stored = self.report.metrics.get(split, {}).get(metric, math.nan)
                measured = certificate.candidates[number].reported.get(split)
                if measured is not None and not math.isclose(measured.score, stored, abs_tol=1e-6):
                    was = f"{measured.score:.6g} in the certificate"
                    found.differs.append(f"{split}: {was}, {stored:.6g} in {REPORT}")
                found.reported = {**found.reported, f"{directory_of(number)}, {split}": value}
        if certificate.chosen is None or certificate.chosen >= len(candidates):
            found.differs.append("the written size was not trained")
            return
        found.scores = {"": full}
        found.reported = {
            **found.reported,
            **{f"full rank, {s}": v for s, v in whole.reported.items()},
        }
        found.rows = len(full)
        found.evidence = Evidence(
            promise=promise,
            bound=bound,
            full=reference,
            screened=self.record.screened,
            candidates=candidates,
            rows=scorer.sets,
            seeds={"training": self.recipe.training.seed, "rows": block.seed},
            base=self.report.base,
        )


@dataclass(frozen=True)
class _Scored:
    """An adapter's ranks, the cost of a component of each layer, and its scores."""

    ranks: Mapping[str, int]
    cost: Mapping[str, int]
    test: RowScores
    reported: Mapping[str, RowScores]


class _Scorer:
    """Scores adapters on the rows of a search; those that test are found once.

    Attributes:
        sets: number and digest of the rows, once an adapter was scored.
    """

    def __init__(self, search: SearchAgain) -> None:
        self._search = search
        self._test: EncodedRows | None = None
        self.sets: dict[str, RowSet] = {}

    def scored(self, place: str, *, reported: bool) -> _Scored:
        """Score the adapter of a run.

        Args:
            reported: on the reported splits, too.
        """
        search = self._search
        recipe, task, rows = search.recipe, search.task, search.rows
        adapter = read_adapter(search.run / place / ADAPTER)
        base, _ = load_adapted(adapter, recipe, task, on=search.on, strict=True)
        test = self._rows_on(base)
        with tempfile.TemporaryDirectory() as scratch:
            scorer = build_scorer(recipe, task, base, Path(scratch))
            splits = rows.report.items() if reported else ()
            return _Scored(
                ranks={path: int(f.live_components().sum()) for path, f in adapter.layers.items()},
                cost=costs_of(adapter.layers),
                test=test.scores(scorer),
                reported={
                    name: scorer.row_scores(encode(task, base, part, rows.origin(part)))
                    for name, part in splits
                },
            )

    def _rows_on(self, base: Base) -> EncodedRows:
        search = self._search
        if self._test is not None:
            return self._test.on(base)
        origin = search.rows.origin(search.rows.train)
        train = encode(search.task, base, search.rows.train, origin, training=True)
        parts = deciding_parts(search.recipe, search.task, base, search.rows, train, search.held)
        self._test, self.sets = parts.test, parts.sets
        return parts.test


def _starts(report: RunReport) -> list[int]:
    return [rank.start for rank in report.ranks.values() if rank.start]


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


def _changed_rows(stored: Mapping[str, RowSet], here: Mapping[str, RowSet]) -> Iterator[str]:
    for name in {**stored, **here}:
        rows, now = stored.get(name), here.get(name)
        if now is None:
            yield f"there are no {name} rows any more"
        elif rows is None:
            yield f"the certificate has no {name} rows"
        elif now.digest != rows.digest:
            yield f"the {name} rows are not those of the certificate ({now.rows:,}, {rows.rows:,})"


def _changed(place: Path, digest: str, task: Task) -> Iterator[str]:
    now = result_digest(place)
    if now is None:
        yield f"{place} is missing"
    elif now != digest:
        yield f"{place} is not the adapter of the certificate"
    recorded = deciding(read_sora_file(place / SORA_FILE)[0])
    yield from differing_facts(recorded, deciding(task_meta(task)), (place / SORA_FILE, "the run"))
