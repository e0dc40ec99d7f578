"""A run of `sora auto` computed again, by its reports, its record and its adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from methods.registry import size_keys
from sora_cli.adapter.digest import deciding, differing_facts, result_digest
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import ADAPTER
from sora_cli.core.errors import SoraError
from sora_cli.model.base import Base
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.reading import named_base
from sora_cli.recipe.start import StartBlock
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import RunReport, read_report
from sora_cli.run.encode import encode
from sora_cli.run.lineage import inherited
from sora_cli.run.results import task_meta
from sora_cli.search.ask_table import NONE
from sora_cli.search.asked_search import AskedSearch, planned_rows
from sora_cli.search.auto_search import AutoSearch, Made, Maker
from sora_cli.search.cut import load_to_score
from sora_cli.search.evidence import Candidate, Evidence, Reference, Screened, directory_of
from sora_cli.search.kept_answers import Kept
from sora_cli.search.promise import Promise, promise_of
from sora_cli.search.record import FILE_NAME as RECORD
from sora_cli.search.record import read_auto
from sora_cli.search.row_set import POOL, SCREENING, TEST, RowSet
from sora_cli.search.rows import deciding_parts, deciding_rows, method_on, row_sets
from sora_cli.search.size import Size, size_of
from sora_cli.search.statistic import BoundMethod
from sora_cli.search.statistics import statistic_of
from sora_cli.search.test_rows import EncodedRows, TestRows
from sora_cli.tasks.row_scores import RowScores, asked_scores
from sora_cli.verify.again import Again, if_moved, loaded_again, rows_again
from sora_cli.verify.tolerances import close


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
        self.digest_of = cache(result_digest)  # reads a whole file
        if self.recipe.auto is None:
            raise SoraError(f"{run / REPORT} is not the report of a sora auto run")
        self.task, self.rows = rows_again(self.recipe)
        pool = POOL if promise_of(self.recipe).basis == "asked" else TEST
        screening, test = (self._recorded(name) for name in (SCREENING, pool))
        # scoring needs no start, but its training rows do not test
        start = report.recipe.get("start") and StartBlock.model_validate(report.recipe["start"])
        with if_moved("auto.unlabelled=FILE"):
            self.held = deciding_rows(
                self.recipe, self.task, self.rows, screening.rows, test.held or test.rows,
                screening.inputs, inherited(self.recipe.model_copy(update={"start": start})),
            )  # fmt: skip

    def _recorded(self, name: str) -> RowSet:
        rows = self.record.rows.get(name)
        if rows is None:
            raise SoraError(f"{self.run / RECORD} names no {name} rows")
        return rows

    def again(self, certificate: Evidence) -> Again:
        """Search again, if the adapters and the rows are those of the certificate."""
        found = Again(named=[size.max_params for size in self.record.named()])
        found.differs += self._other_files(certificate)
        if found.differs:
            return found
        maker = StoredRuns(self)
        full = maker.scores_at_full_rank()
        search = self._search(maker, full)
        for _ in search.run():
            pass
        if search.record.asked is not None:  # those of other rows are answers, too
            search.record.asked = search.record.asked.with_answers(Kept.of(self.run).answers())
        if not search.record.candidates:
            found.differs.append(f"{self.run / directory_of(0)} is missing: no size was trained")
            return found
        written = maker.read(".", test=False, reported=True).reported
        reported = {split: scores.value for split, scores in written.items()}
        found.evidence = search.certificate(reported, self.report.base)
        found.scores, found.reported = full, maker.reported
        found.differs += self._unlike_report(certificate)
        return found

    def _search(self, maker: StoredRuns, full: RowScores) -> AutoSearch:
        """Return the search from its beginning, by what is stored.

        Args:
            full: full rank's scores on the test rows.
        """
        promise, block, asked = promise_of(self.recipe), self.recipe.auto, self.record.asked
        assert block is not None
        unmade: dict[str, Any] = {"full": None, "screened": [], "candidates": [], "stopped": False}
        record = self.record.model_copy(update={**unmade, "rows": maker.sets})
        seeds = {"training": self.recipe.training.seed, "rows": block.seed}
        if asked is None:
            bound = method_on(full, len(full), promise)
            return AutoSearch(maker, record, promise, bound, len(full), seeds)
        record.asked = asked.model_copy()
        rows, first = maker.sets[POOL].rows, asked.first(promise)
        search = AskedSearch(maker, record, promise, method_on(full, rows, first), rows, seeds)
        kept = Kept.of(self.run).answers()
        search.read = lambda rows: {key: kept.get(key, NONE) for key in rows}
        search.enters = asked.sizes
        return search

    def planned(self, pool: int) -> int:
        """Return how many rows of a pool were planned to test."""
        promise, asked = promise_of(self.recipe), self.record.asked
        if asked is None:
            raise SoraError(f"{self.run / RECORD} does not say which labels were asked for")
        first = asked.first(promise)
        promise = first.settled(method_on(asked_scores([]), pool, first), pool)
        screening = self._recorded(SCREENING).rows
        return planned_rows(self.record.screened, screening, promise, pool, all_lost=asked.all_lost)

    def _other_files(self, certificate: Evidence) -> Iterator[str]:
        """Yield which rows, adapters and reports are not those of a certificate."""
        yield from _changed_rows(certificate.rows, row_sets(self.rows, self.held))
        known = {ADAPTER: certificate.adapter, f"{directory_of(None)}/{ADAPTER}":
                 certificate.full.digest}  # fmt: skip
        for number, size in enumerate(certificate.candidates):
            known[f"{directory_of(number)}/{ADAPTER}"] = size.digest or ""
        for folder, digest in known.items():
            yield from self._changed(self.run / folder, digest)
        for number in (None, *range(len(certificate.candidates))):
            place = self.run / directory_of(number)
            report = read_report(place)
            if report is None or report.steps is None or not _starts(report):
                yield f"{place / REPORT} is missing, or describes no training"

    def _changed(self, place: Path, digest: str) -> Iterator[str]:
        """Yield how an adapter is not that of the certificate, or of another task."""
        now = self.digest_of(place)
        if now is None:
            yield f"{place} is missing"
        elif now != digest:
            yield f"{place} is not the adapter of the certificate"
        recorded, here = deciding(read_sora_file(place / SORA_FILE)[0]), task_meta(self.task)
        yield from differing_facts(recorded, deciding(here), (place / SORA_FILE, "the run"))

    def _unlike_report(self, certificate: Evidence) -> Iterator[str]:
        """Yield the reported scores that are others in the report of the written adapter."""
        written = certificate.written
        for split, measured in () if written is None else written.reported.items():
            stored = self.report.metrics.get(split, {}).get(certificate.promise.metric, math.nan)
            if not close(measured.score, stored):
                was = f"{measured.score:.6g} in the certificate"
                yield f"{split}: {was}, {stored:.6g} in {REPORT}"


@dataclass(frozen=True)
class Read:
    """A stored adapter, scored on the test rows, on the reported splits, or on both."""

    size: Size
    test: RowScores | None
    reported: Mapping[str, RowScores]


class StoredRuns(Maker):
    """Reads what a search has trained, and scores it; the rows that test are found once.

    Attributes:
        sets: number and digest of the rows, once an adapter was scored.
        reported: full rank's scores by reported split, once it was scored.
    """

    def __init__(self, search: SearchAgain) -> None:
        self._search, self._serve = search, promise_of(search.recipe).serve
        self._test: EncodedRows | None = None
        self._full: RowScores | None = None
        self.sets: dict[str, RowSet] = {}
        self.reported: Mapping[str, RowScores] = {}

    def full_rank(self) -> Reference:
        """Return the stored run at full rank, scored."""
        full, place = self.scores_at_full_rank(), self._search.run / directory_of(None)
        report, first = self._report(None), self._report(0)
        return Reference(
            **_full_size(report, self._serve).model_dump(),
            directory=directory_of(None),
            digest=self._search.digest_of(place / ADAPTER) or "",
            test=statistic_of(full).score(full, full),
            r_max=max(_starts(report)),
            steps=report.steps,
            cut_at=_left_at(first),
            reported={split: scores.value for split, scores in self.reported.items()},
        )

    def screened(self, promise: Promise, bound: BoundMethod) -> list[Screened]:
        """Return the record's: their cuts are not kept."""
        del promise, bound
        return list(self._search.record.screened)

    def size(self, number: int, named: Screened, *, scored: bool) -> Made | None:
        """Return a stored size; None: it was not trained."""
        del named  # the certificate has what was trained, and the plan is compared with it
        place = self._search.run / directory_of(number)
        if not place.is_dir():
            return None
        report, read = self._report(number), self.read(directory_of(number), test=scored)
        made = Candidate(
            **read.size.model_dump(),
            max_params=_max_params(report),
            directory=directory_of(number),
            digest=self._search.digest_of(place / ADAPTER),
            heal_steps=(report.steps or 0) - _left_at(report),
            test=None,
        )
        return made, read.test

    def scored(self, number: int, named: Screened) -> RowScores:
        """Return the scores of a stored size."""
        del named
        scores = self.read(directory_of(number)).test
        assert scores is not None
        return scores

    def draw(self, rows: int) -> TestRows:
        """Return the test rows: they were drawn when the first adapter was scored."""
        del rows
        assert self._test is not None
        return self._test.part

    def scores_at_full_rank(self) -> RowScores:
        """Return the scores of the stored run at full rank; the first time, on all splits."""
        if self._full is None:
            read = self.read(directory_of(None), reported=True)
            assert read.test is not None
            self._full, self.reported = read.test, read.reported
        return self._full

    def read(self, place: str, *, test: bool = True, reported: bool = False) -> Read:
        """Return the size and the scores of a run's adapter.

        Args:
            place: of the run, inside the search's directory.
            test, reported: the rows to score it on.
        """
        search, folder = self._search, self._search.run / place / ADAPTER
        recipe, task, rows, on = search.recipe, search.task, search.rows, search.on
        splits = rows.report.items() if reported else ()
        size, trainer = load_to_score(folder, recipe, task, serve=self._serve, on=on)
        base = trainer.base
        tested = self._rows_on(base).scores(trainer) if test else None
        own = {
            name: trainer.row_scores(encode(task, base, part, rows.origin(part)))
            for name, part in splits
        }
        return Read(size, tested, own)

    def _rows_on(self, base: Base) -> EncodedRows:
        """Return the rows that test, encoded."""
        search = self._search
        if self._test is not None:
            return self._test.on(base)
        origin = search.rows.origin(search.rows.train)
        train = encode(search.task, base, search.rows.train, origin, training=True)
        parts = deciding_parts(search.recipe, search.task, base, search.rows, train, search.held)
        self._test, self.sets = parts.test, parts.sets
        if POOL in parts.sets:
            assert search.recipe.auto is not None
            rows = search.planned(parts.sets[POOL].rows)
            self._test = parts.test.drawn(rows, base, search.recipe.auto.seed)
            self.sets[TEST] = self._test.row_set()
        return self._test

    def _report(self, number: int | None) -> RunReport:
        place = self._search.run / directory_of(number)
        report = read_report(place)
        if report is None:
            raise SoraError(f"{place / REPORT} is missing: it says what was done")
        return report


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
        if name == TEST and POOL in here:  # they are drawn later
            continue
        rows, now = stored.get(name), here.get(name)
        if now is None:
            yield f"there are no {name} rows any more"
        elif rows is None:
            yield f"the certificate has no {name} rows"
        elif now.digest != rows.digest:
            yield f"the {name} rows are not those of the certificate ({now.rows:,}, {rows.rows:,})"
