"""Check a certificate again: load every adapter from its files and score it anew.

Scores are compared with a tolerance (`scored`), since another machine rounds differently: if a
verdict changes within the tolerance, the check cannot tell. Everything else must equal the facts in
the run's files (`expected`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from sora_cli.adapter.card import card_matches
from sora_cli.adapter.digest import deciding, differing_facts, result_digest
from sora_cli.adapter.directory import read_adapter
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import ADAPTER
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.data.rows import Rows
from sora_cli.data.source import MissingDataError
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.load import LoadedRecipe, load_stored
from sora_cli.recipe.reading import CERTIFICATE, load_read, named_base
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import read_report
from sora_cli.run.prepare import load_task
from sora_cli.run.results import task_meta
from sora_cli.run.stored import load_adapted
from sora_cli.search.basis import certifiable_on
from sora_cli.search.bounds import drop_bound
from sora_cli.search.certifiable import Certifiable
from sora_cli.search.certificate import (
    ANSWERS,
    REFIT,
    SCREENING,
    TEST,
    TRAIN,
    Certificate,
    Half,
    Measured,
    PartTest,
    RowSet,
    SizeTest,
    directory_of,
    half_name,
    read_stored,
    required_certificate,
)
from sora_cli.search.class_rows import with_classes
from sora_cli.search.halves import HALVES, half_confidence, held_data
from sora_cli.search.promise import Promise, promise_of
from sora_cli.search.rows import (
    Held,
    Part,
    cross_fit_rows,
    deciding_rows,
    row_sets,
    sets_of_halves,
)
from sora_cli.search.size import Size, size_of
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_scorer
from sora_cli.verify.expected import (
    Reports,
    expected,
    out_of_order,
    read_reports,
    same_words,
    unlike,
    unreported,
)
from sora_cli.verify.scored import Compared, ScoresAgain
from sora_cli.verify.verdict import Verdict

TOLERANCE = 0.005
"""Share of the rows that may change their outcome on another machine; one row always may."""
_WITH_CLASSES = 3  # version of a certificate that counts the classes of its test rows
_TEST, _ANSWERS = "", " "
"""Keys of the test rows, with and without labels, beside the reported splits, which have names."""


class Rechecked(BaseModel):
    """The outcome of a check.

    Attributes:
        compared: every figure that was computed again.
        differs: differences from the certificate, a sentence each.
        unclear: verdicts that changed within the tolerance, and bounds that are much better in the
            certificate, a sentence each.
        rows: number of differing rows that are tolerated, by part of the test rows.
    """

    compared: list[Compared]
    differs: list[str]
    unclear: list[str]
    rows: dict[str, int]

    @property
    def verdict(self) -> Verdict:
        """DIFFERENT if anything differs, UNKNOWN if only a figure is unclear, else SAME."""
        if self.differs:
            return Verdict.DIFFERENT
        return Verdict.UNKNOWN if self.unclear else Verdict.SAME

    @property
    def exit_code(self) -> int:
        """The exit code of the verdict."""
        return {Verdict.SAME: OK, Verdict.UNKNOWN: NO_VERDICT}.get(self.verdict, FAILED)


def recheck(run: Path, overrides: Sequence[str] = ()) -> tuple[Certificate, Rechecked]:
    """Compare a run's certificate with its files, and score its adapters again on the same rows.

    Args:
        overrides: recipe keys with the present place of its data or model. Rows and adapters must
            still be those of the certificate.
    """
    certificate, loaded = _read_run(run, overrides)
    stored = read_stored(run)
    recipe, block = loaded.recipe, loaded.recipe.auto
    if stored is None or block is None:
        raise SoraError(f"{run / REPORT} is not the report of a sora auto run")
    task, sets, tests, reported = _rows(recipe, certificate)
    halves = HALVES if certificate.halves else (None,)
    reports, differs = list[Reports](), [*_changed_rows(certificate.rows, sets)]
    differs += _changed_adapters(run, certificate, task)
    for half in halves:
        part = read_reports(run, len(certificate.candidates), half)
        if isinstance(part, list):
            differs += part
        else:
            reports.append(part)
    if len(reports) == len(halves):
        differs += unreported(certificate, reports[0].written)
    scored, correct = ScoresAgain(TOLERANCE), certificate
    # scoring is the long part: not if other rows or adapters make the scores meaningless
    if not differs:
        again = _Again(run, certificate, loaded, task, reported, scored)
        if certificate.halves:
            certifiable, sizes = again.halves(tests)
        else:
            certifiable, sizes = again.held_out(tests[0])
        correct = expected(again.agreed, recipe, reports, sets, certifiable, sizes, again.final())
    differs += [*unlike(stored, correct), *out_of_order(correct)]
    if same_words(stored, correct) and not card_matches(run / ADAPTER, correct.lines()):
        differs.append(f"the card in {run / ADAPTER} does not say: {correct.lines()[0]}")
    # each half is scored by itself, and so are labels and answers
    parts = [half_name(half) for half in HALVES] if certificate.halves else [TEST, ANSWERS]
    done = Rechecked(
        compared=scored.compared,
        differs=differs,
        unclear=[*scored.unclear, *scored.better],
        rows={part: scored.tolerated(sets[part].rows) for part in parts if part in sets},
    )
    return certificate, done


def _rows(
    recipe: Recipe, certificate: Certificate
) -> tuple[Task, dict[str, RowSet], list[dict[str, Held]], dict[str, Held]]:
    """Load all rows.

    Returns:
        The task; the row sets of all parts; the test rows by part, of cross-fitting of each half's
        adapters; and the reported rows by split.
    """
    screening, test = (certificate.rows[name].rows for name in (SCREENING, TEST))
    if certificate.halves:
        task, rows = _load(recipe)
        parts = cross_fit_rows(recipe, task, screening)
        sets = sets_of_halves(rows, parts)
        tests: list[dict[str, Held]] = [{_TEST: parts[half_name(3 - half)]} for half in HALVES]
    else:
        more, seed = {}, recipe.auto.seed if recipe.auto is not None else 0
        if certificate.final is not None:
            # its recipe trains on all rows; these are of the tested one
            more = {REFIT: row_sets(_load(recipe)[1], {})[TRAIN]}
            held_out = recipe.data.model_copy(update=held_data(screening + test, seed))
            recipe = recipe.model_copy(update={"data": held_out})
        task, rows = _load(recipe)
        with _moved("auto.unlabelled=FILE"):
            held = deciding_rows(recipe, task, rows.train, screening, test)
        parts_of_test = {_TEST: TEST, _ANSWERS: ANSWERS}
        tests = [{name: held[part] for name, part in parts_of_test.items() if part in held}]
        sets = row_sets(rows, held) | more
        if certificate.schema_version >= _WITH_CLASSES:
            sets = with_classes(sets, held, task)
    return task, sets, tests, {s: Part(r, rows.origin(r)) for s, r in rows.report.items()}


class _Again:
    """Scores all adapters again and compares.

    Attributes:
        agreed: the certificate, with its scores where they agree, else the scores here.
    """

    def __init__(
        self,
        run: Path,
        certificate: Certificate,
        loaded: LoadedRecipe,
        task: Task,
        reported: Mapping[str, Held],
        scored: ScoresAgain,
    ) -> None:
        self._run, self.agreed, self._loaded, self._task = run, certificate, loaded, task
        self._reported, self._scored = reported, scored
        self._promise, self._on = promise_of(loaded.recipe), named_base(loaded)
        self._here: list[tuple[int, SizeTest]] = []  # numbers of candidates, and their tests here

    def held_out(self, test: Mapping[str, Held]) -> tuple[Certifiable, list[list[Size]]]:
        """Compare the adapters that rows held out test.

        Returns:
            The drop that the test rows can certify, and the sizes of the candidates' adapters.
        """
        whole, certifiable = self._full(None, test, self._reported)
        part = Half(full=self.agreed.full, candidates=self.agreed.candidates)
        part, sizes = self._compared(part, None, whole, certifiable, test, self._reported)
        update = {"full": part.full, "candidates": part.candidates}
        self.agreed = self.agreed.model_copy(update=update)
        return certifiable, [sizes]

    def halves(self, tests: Sequence[Mapping[str, Held]]) -> tuple[Certifiable, list[list[Size]]]:
        """Compare the adapters of both halves; returns as `held_out`.

        Args:
            tests: rows that test each half's adapters, by part.
        """
        each = half_confidence(self._promise.confidence)
        self._promise = self._promise.model_copy(update={"confidence": each})
        parts, sizes = [], []
        for half, stored, test in zip(HALVES, self.agreed.halves, tests, strict=True):
            whole, certifiable = self._full(half, test, {})
            part, own = self._compared(stored, half, whole, certifiable, test, {})
            parts.append(part)
            sizes.append(own)
        self._check_means()
        self.agreed = self.agreed.model_copy(update={"halves": parts})
        return certifiable, sizes

    def _check_means(self) -> None:
        """Note the sizes whose verdict by the mean of both halves is another here."""
        max_drop = self.agreed.promise.max_drop
        for number, size in enumerate(self.agreed.candidates):
            tests = [here for place, here in self._here if place == number]
            mean = SizeTest.mean(tests, max_drop) if tests else None
            if mean is not None and size.test is not None and mean.verdict != size.test.verdict:
                self._scored.unclear.append(
                    f"size {number + 1}, mean of both halves: {size.test.verdict} by a bound of "
                    f"{size.test.upper:.6g} in the certificate, {mean.verdict} by {mean.upper:.6g} "
                    f"here, of {max_drop:g}"
                )

    def final(self) -> Size | None:
        """Compare the scores of an adapter that was trained after the tests; return its size."""
        last = self.agreed.final
        if last is None:
            return None
        small, own = self._measured(self._run, self._reported), {}
        for split, scores in small.scores.items():
            was = last.reported.get(split, math.nan)
            own[split] = self._scored.score(f"written, {split}", was, scores)
        self.agreed = self.agreed.model_copy(
            update={"final": last.model_copy(update={"reported": own})}
        )
        return size_of(small.ranks, small.cost, self._promise.serve)

    def _measured(self, directory: Path, parts: Mapping[str, Held]) -> _Measured:
        return _measured(directory, self._loaded.recipe, self._task, parts, self._on)

    def _full(
        self, half: int | None, test: Mapping[str, Held], reported: Mapping[str, Held]
    ) -> tuple[_Measured, Certifiable]:
        place = self._run / directory_of(None, half)
        whole = self._measured(place, {**test, **reported})
        numbers = tuple(len(whole.scores[name]) for name in test)
        return whole, certifiable_on(self._promise, numbers, whole.scores[_TEST])

    def _compared(
        self,
        stored: Half,
        half: int | None,
        whole: _Measured,
        certifiable: Certifiable,
        test: Mapping[str, Held],
        reported: Mapping[str, Held],
    ) -> tuple[Half, list[Size]]:
        """Compare full rank and the candidates that were trained on the same rows.

        Args:
            whole: full rank here.
            reported: reported rows, which full rank and the written candidate are scored on.
        """
        scored = self._scored
        full, sizes, candidates = whole.scores[_TEST], [], []
        promise = self._promise.settled(certifiable, len(full))
        name = "full rank" if half is None else f"full rank, half {half}"
        score, known = scored.score(name, stored.full.test, full), dict[str, float]()
        for number, size in enumerate(stored.candidates):
            # only the chosen adapter was scored on the reported splits
            written = reported if number == self.agreed.chosen else {}
            place = directory_of(number, half)
            small = self._measured(self._run / place, {**test, **written})
            sizes.append(size_of(small.ranks, small.cost, promise.serve))
            here, own = None, {}
            if certifiable.may_pass(promise.max_drop):
                scores = [(whole.scores[name], small.scores[name]) for name in test]
                here = self._tested(place, number, size.test, stored.full.test, scores, promise)
            for split in written:
                was = stored.full.reported.get(split, math.nan)
                full_here = scored.score(f"{name}, {split}", was, whole.scores[split])
                known[split] = full_here
                was = size.reported[split].score if split in size.reported else math.nan
                value = scored.score(f"{place}, {split}", was, small.scores[split])
                own[split] = Measured(score=value, drop=promise.drop(full_here, value))
            candidates.append(size.model_copy(update={"test": here, "reported": own}))
        full_rank = stored.full.model_copy(update={"test": score, "reported": known})
        return Half(full=full_rank, candidates=candidates), sizes

    def _tested(
        self,
        place: str,
        number: int,
        stored: SizeTest | None,
        before: float,
        scores: Sequence[tuple[RowScores, RowScores]],
        promise: Promise,
    ) -> SizeTest:
        """Return a size's test here, with the stored figures where they agree.

        Args:
            place: directory of the candidate.
            before: the stored score at full rank.
            scores: of full rank and of the candidate, for each part of the promise.
        """
        seed = self._loaded.recipe.auto.seed if self._loaded.recipe.auto is not None else 0
        bounds = [
            (small.beside(full), drop_bound(full, small, part.confidence, seed=seed))
            for part, (full, small) in zip(promise.parts(), scores, strict=True)
        ]
        if len(bounds) == 1:
            here = SizeTest.of(*bounds[0], promise.max_drop)
            self._here.append((number, here))
            if stored is None:
                return here
            return self._scored.test(place, stored, before, scores[0][0], here, promise)
        tests = [PartTest.of(*bound, promise.max_drop) for bound in bounds]
        agreed, known = list(tests), stored.parts if stored is not None else []
        for i, (part, was) in enumerate(zip(promise.parts(), known, strict=False)):
            name, whole = f"{place}, by {part.basis}", 1.0 if part.by_answers else before
            agreed[i] = self._scored.test(name, was, whole, scores[i][0], tests[i], part)
        return self._either(place, stored, tests, agreed, promise.max_drop)

    def _either(
        self,
        place: str,
        stored: SizeTest | None,
        tests: Sequence[PartTest],
        agreed: Sequence[PartTest],
        max_drop: float,
    ) -> SizeTest:
        """Return the test by labels or answers; a verdict of one that turned may not matter."""
        here = SizeTest.either(tests, max_drop)
        turned = [one for one in self._scored.unclear if one.startswith(f"{place}, by ")]
        if turned and stored is not None and stored.verdict == here.verdict:
            self._scored.unclear = [one for one in self._scored.unclear if one not in turned]
        return SizeTest.either(agreed, max_drop)


def _read_run(run: Path, overrides: Sequence[str]) -> tuple[Certificate, LoadedRecipe]:
    certificate, report = required_certificate(run), read_report(run)
    if report is None:
        raise SoraError(f"{run / REPORT} is missing: it says which data and model were used")
    load = partial(load_stored, report.recipe, run / REPORT, report.name)
    loaded = load_read(load, overrides, CERTIFICATE)
    return certificate, replace(loaded, recipe=loaded.recipe.to_score())


def _load(recipe: Recipe) -> tuple[Task, Rows]:
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


def _changed_adapters(run: Path, certificate: Certificate, task: Task) -> list[str]:
    known = {run / ADAPTER: certificate.adapter}
    for half, part in (
        zip(HALVES, certificate.halves, strict=True)
        if certificate.halves
        else [(None, certificate)]
    ):
        known[run / directory_of(None, half) / ADAPTER] = part.full.digest
        for number, size in enumerate(part.candidates):
            known[run / directory_of(number, half) / ADAPTER] = size.digest
    changed = []
    for place, digest in known.items():
        now = result_digest(place)
        if now is None:
            changed.append(f"{place} is missing")
        elif now != digest:
            changed.append(f"{place} is not the adapter of the certificate")
        recorded = deciding(read_sora_file(place / SORA_FILE)[0])
        changed += differing_facts(
            recorded, deciding(task_meta(task)), (place / SORA_FILE, "the run")
        )
    return changed


@dataclass(frozen=True)
class _Measured:
    """An adapter's ranks, the cost of a component of each layer, and scores by part."""

    ranks: Mapping[str, int]
    cost: Mapping[str, int]
    scores: Mapping[str, RowScores]


def _measured(
    directory: Path, recipe: Recipe, task: Task, parts: Mapping[str, Held], on: str | None
) -> _Measured:
    adapter = read_adapter(directory / ADAPTER)
    base, _ = load_adapted(adapter, recipe, task, on=on, strict=True)
    with tempfile.TemporaryDirectory() as scratch:
        scorer = build_scorer(recipe, task, base, Path(scratch))
        scores = {
            name: part.scores(scorer, part.encoded(task, base)) for name, part in parts.items()
        }
    return _Measured(
        ranks={path: int(f.live_components().sum()) for path, f in adapter.layers.items()},
        cost={path: f.A.shape[1] + f.B.shape[0] for path, f in adapter.layers.items()},
        scores=scores,
    )
