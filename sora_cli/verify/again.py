"""The evidence of a certificate computed again, from the recipe and the stored runs alone.

Nothing is taken from the certificate but the command that made it and the place of what is outside
its directory. Of `sora auto` every run is stored, and `auto.json` says which sizes were named, and
how many rows screen and test. Of `sora prune` and `sora extract` the sizes are cut again from the
reference, and the written adapter is scored beside them; of `sora prune --heal` each size is a run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from methods.keep import Keep
from methods.registry import size_keys
from sora_cli.adapter.digest import deciding, differing_facts, result_digest
from sora_cli.adapter.directory import lazy_adapter, read_adapter
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import ADAPTER, locate_adapter
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.rounding import Rounding
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import NO_VERDICT
from sora_cli.data.source import MissingDataError
from sora_cli.merge.extract import prepare_extract
from sora_cli.model.base import Base
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.load import LoadedRecipe, load_stored
from sora_cli.recipe.reading import CERTIFICATE, load_read, named_base
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import RunReport, read_report
from sora_cli.run.encode import encode
from sora_cli.run.prepare import load_task
from sora_cli.run.results import task_meta
from sora_cli.run.stored import load_adapted
from sora_cli.search.choosing import block_of, choosing_rows, recipe_digest
from sora_cli.search.cut import score_adapter, smallest_cut
from sora_cli.search.evidence import (
    FILE_NAME,
    SIZES,
    Candidate,
    Evidence,
    Measured,
    Reference,
    directory_of,
)
from sora_cli.search.heal import healing_budgets, tested_runs
from sora_cli.search.promise import Promise, options_of, promise_of
from sora_cli.search.record import FILE_NAME as RECORD
from sora_cli.search.record import read_auto
from sora_cli.search.row_set import SCREENING, TEST, RowSet
from sora_cli.search.rows import deciding_parts, deciding_rows, method_on, row_sets
from sora_cli.search.search import Outcome
from sora_cli.search.size import Size, size_of
from sora_cli.search.sizes import NEARLY_ALL
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.search.test_rows import EncodedRows, TestRows
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_scorer


class NotAgainError(SoraError):
    """A certificate that cannot be computed again, which says nothing against it."""

    exit_code = NO_VERDICT


@dataclass
class Again:
    """What was computed again.

    Attributes:
        evidence: as it follows from the files; None: they are other files, so nothing was scored.
        scores: of the reference on the test rows, and on the reported splits.
        named: `max_params` of the sizes to be tested, in this order; None: the maker orders them.
        differs: what is not as the certificate says, a sentence each.
        rows: number of test rows.
    """

    evidence: Evidence | None = None
    scores: Mapping[str, RowScores] = field(default_factory=dict)
    reported: Mapping[str, RowScores] = field(default_factory=dict)
    named: Sequence[int] | None = None
    differs: list[str] = field(default_factory=list)
    rows: int = 0


def compute_again(
    run: Path, certificate: Evidence, overrides: Sequence[str], reference: Path | None
) -> Again:
    """Compute the evidence of a certificate again.

    Args:
        run: directory of the certificate.
        overrides: recipe keys with the present place of its data or model.
        reference: of a finished adapter: the present place of what it was compared with.
    """
    if certificate.command == "auto":
        if reference is not None:
            raise SoraError("B goes with the certificate of a finished adapter", hint="leave out B")
        return _Search(run, overrides).again(certificate)
    return _Finished(run, certificate, overrides, reference).again(certificate)


# a search


class _Search:
    """A run of `sora auto`, by its reports, its record and its adapters."""

    def __init__(self, run: Path, overrides: Sequence[str]) -> None:
        report, record = read_report(run), read_auto(run)
        for found, name in ((report, REPORT), (record, RECORD)):
            if found is None:
                raise SoraError(f"{run / name} is missing: it says what was done")
        assert report is not None
        assert record is not None
        loaded = _loaded(report.recipe, run / REPORT, report.name, overrides)
        self.run, self.report, self.record, self.recipe = run, report, record, loaded.recipe
        self._on = named_base(loaded)
        if self.recipe.auto is None:
            raise SoraError(f"{run / REPORT} is not the report of a sora auto run")
        self.task, self.rows = _loading(self.recipe)
        screening, test = (self._recorded(name) for name in (SCREENING, TEST))
        with _moved("auto.unlabelled=FILE"):
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

    def __init__(self, search: _Search) -> None:
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
        base, _ = load_adapted(adapter, recipe, task, on=search._on, strict=True)
        test = self._rows_on(base)
        with tempfile.TemporaryDirectory() as scratch:
            scorer = build_scorer(recipe, task, base, Path(scratch))
            splits = rows.report.items() if reported else ()
            return _Scored(
                ranks={path: int(f.live_components().sum()) for path, f in adapter.layers.items()},
                cost={path: f.A.shape[1] + f.B.shape[0] for path, f in adapter.layers.items()},
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


# a finished adapter


class _Finished:
    """An adapter that `sora prune` or `sora extract` wrote, and what it was made from."""

    def __init__(
        self, run: Path, certificate: Evidence, overrides: Sequence[str], reference: Path | None
    ) -> None:
        if certificate.recipe is None:
            raise SoraError(f"{run / FILE_NAME} has no recipe: it does not say which rows test")
        self.run, self.command = run, certificate.command
        self.loaded = _loaded(certificate.recipe, run / FILE_NAME, run.name, overrides)
        self.reference = reference or Path(certificate.full.directory)
        if not self.reference.exists():
            raise NotAgainError(
                f"{certificate.full.name} is not in {self.reference} any more",
                hint="say where it is now: sora verify A B --certificate",
            )
        now = result_digest(self.reference)
        if now != certificate.full.digest:
            raise NotAgainError(
                f"{self.reference} is not {certificate.full.name} of the certificate",
                hint="say where it is now: sora verify A B --certificate",
            )

    def again(self, certificate: Evidence) -> Again:
        """Search again, and score the written adapter beside what was found."""
        if not self._same_recipe(certificate):
            return Again(
                differs=[f"the recipe in {self.run / FILE_NAME} is not the one that was used"]
            )
        recipe = self.loaded.recipe
        assert recipe.auto is not None
        promise, asked = promise_of(recipe), options_of(recipe.auto)
        place = locate_adapter(self.run)
        with _moved("data.files.train=FILE, data.path=DIR, or auto.unlabelled=FILE"):
            rows, promise = choosing_rows(asked, self.loaded, promise, self.reference)
        outcome = self._searched(rows, promise, place)
        recorded = certificate.recipe or {}
        evidence = outcome.evidence(self.command, self.reference, recorded)
        evidence.full.directory = certificate.full.directory
        found = Again(scores={"": outcome.scores}, rows=len(outcome.scores))
        written = evidence.written
        if written is not None and written.digest is None:
            written.digest = result_digest(place)
        evidence.adapter = result_digest(place) or ""
        found.evidence = Evidence.model_validate(evidence.model_dump())
        found.differs += self._unlike_written(place, rows, evidence, outcome)
        return found

    def _same_recipe(self, certificate: Evidence) -> bool:
        """Return True if the recipe is that of the command, by the adapter's lineage or its run."""
        recipe = certificate.recipe or {}
        if self.command == "heal":
            first = next(iter(healing_budgets(self.reference)))
            report = read_report(self.run / SIZES / str(first))
            block = self.loaded.recipe.auto
            assert block is not None
            own = {"auto": block_of(options_of(block))}  # no other key of the block is read
            return report is not None and {**report.recipe, **own} == recipe
        lineage = read_sora_file(locate_adapter(self.run) / SORA_FILE)[0].lineage
        return bool(lineage) and lineage[-1].get("recipe_digest") == recipe_digest(recipe)

    def _searched(self, rows: TestRows, promise: Promise, place: Path) -> Outcome:
        recipe = self.loaded.recipe
        if self.command == "heal":
            return self._healed(rows, promise)
        if self.command == "extract":
            return self._extracted(rows, promise, place)
        lineage = read_sora_file(place / SORA_FILE)[0].lineage
        entry = lineage[-1] if lineage else {}
        with open_adapter(self.reference) as file:
            rounding = None
            if entry.get("bits"):
                head = entry.get("head_bits") is not None
                rounding = Rounding.of(file, int(entry["bits"]), head=head)
            adapter = lazy_adapter(file)
            return smallest_cut(adapter, recipe, rows, promise, _quiet, rounding=rounding)

    def _extracted(self, rows: TestRows, promise: Promise, place: Path) -> Outcome:
        base = read_sora_file(place / SORA_FILE)[1]
        if base is None:
            raise SoraError(f"{place / SORA_FILE} does not name the base model")
        recipe, source = self.loaded.recipe, str(self.reference)
        with open_adapter(place) as file:
            biases = bool(file.biases)
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "adapter"
            found = prepare_extract(source, base.here or base.resolved, output, biases=biases)
            with found.cut(output, Keep(energy=NEARLY_ALL), lambda _: None) as layers:
                adapter = found.adapter(layers)
                return smallest_cut(adapter, recipe, rows, promise, _quiet, against=source)

    def _healed(self, rows: TestRows, promise: Promise) -> Outcome:
        runs = []
        for budget in healing_budgets(self.reference):
            place = self.run / SIZES / str(budget)
            report = read_report(place)
            if report is None:
                break
            loaded = load_stored(report.recipe, place / REPORT, report.name)
            output = loaded.recipe.output.model_copy(update={"dir": str(place)})
            loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"output": output}))
            runs.append((loaded, list[str]()))
        if not runs:
            raise NotAgainError(f"{self.run / SIZES} holds no run of a size")
        return tested_runs(
            self.reference, runs, lambda run: run[0].output_dir, rows, promise, _quiet,
            recipe=self.loaded.recipe,
        )  # fmt: skip

    def _unlike_written(
        self, place: Path, rows: TestRows, evidence: Evidence, outcome: Outcome
    ) -> Iterator[str]:
        """Yield how the written adapter is not the size that was tested."""
        size, _, scores = score_adapter(place, self.loaded.recipe, rows)
        tested = evidence.written or evidence.full
        if size.components != tested.components:
            yield (
                f"{place} has {size.components:,} components, and the size that was chosen "
                f"{tested.components:,}"
            )
        statistic = statistic_of(outcome.scores)
        if evidence.written is None or evidence.written.test is None:
            return
        drop = statistic.drop(outcome.scores, scores)
        rows_apart = abs(drop - evidence.written.test.drop) * len(scores)
        if rows_apart > max(0.005 * len(scores), 1) * max(1.0, abs(outcome.scores.value)):
            yield (
                f"{place} drops by {drop:.6g}, and the size that was tested by "
                f"{evidence.written.test.drop:.6g}"
            )


def _quiet(_: str) -> None:
    """What rows can certify was told when the promise was made."""


# both


def _loaded(
    values: Mapping[str, Any], file: Path, name: str, overrides: Sequence[str]
) -> LoadedRecipe:
    loaded = load_read(partial(load_stored, values, file, name), overrides, CERTIFICATE)
    return replace(loaded, recipe=loaded.recipe.to_score())


def _loading(recipe: Any) -> tuple[Task, Any]:
    """Load the rows; if they are not found, name the overrides that say where they are."""
    with _moved("data.files.train=FILE, or data.path=DIR"):
        return load_task(recipe)


@contextmanager
def _moved(override: str) -> Iterator[None]:
    """Name the override for rows that have moved, if rows are not found inside the `with` block."""
    try:
        yield
    except MissingDataError as error:
        error.hint = f"say where it is now: {override}"
        raise


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
