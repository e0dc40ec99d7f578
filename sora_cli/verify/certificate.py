"""A certificate checked again: every adapter is loaded from its files and scored anew.

Scores are compared with a tolerance (`scored`), since another machine rounds otherwise: a verdict
that turns within it cannot be told. All else must be what the run's files give (`expected`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from sora_cli.adapter.card import states
from sora_cli.adapter.digest import apart, deciding, result_digest
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
from sora_cli.search.bounds import drop_bound
from sora_cli.search.certifiable import Certifiable
from sora_cli.search.certificate import (
    SCREENING,
    TEST,
    Certificate,
    Measured,
    RowSet,
    SizeTest,
    directory_of,
    read_certificate,
    read_stored,
)
from sora_cli.search.promise import promise_of
from sora_cli.search.rows import Held, Part, deciding_rows, row_sets
from sora_cli.search.size import Size, size_of
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_scorer
from sora_cli.verify.expected import (
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
"""Share of the rows that may fall on the other side on another machine; one row always may."""
_TEST = ""
"""The test rows beside the reported splits, one of which may be called test."""


class Rechecked(BaseModel):
    """The outcome of a check.

    Attributes:
        compared: every figure that was computed again.
        differs: what is not as the certificate has it, a sentence each.
        unclear: verdicts that turned within the tolerance, a sentence each.
        rows: differing rows that are tolerated.
    """

    compared: list[Compared]
    differs: list[str]
    unclear: list[str]
    rows: int

    @property
    def verdict(self) -> Verdict:
        """The same, different, or not to be told."""
        if self.differs:
            return Verdict.DIFFERENT
        return Verdict.UNKNOWN if self.unclear else Verdict.SAME

    @property
    def exit_code(self) -> int:
        """The exit code that goes with it."""
        return {Verdict.SAME: OK, Verdict.UNKNOWN: NO_VERDICT}.get(self.verdict, FAILED)


def recheck(run: Path, overrides: Sequence[str] = ()) -> tuple[Certificate, Rechecked]:
    """Compare a run's certificate with its files, and score its adapters again on the same rows.

    Args:
        overrides: of its recipe: where its data or model are by now. Rows and adapters must be
            those of the certificate all the same.

    Raises:
        SoraError: no certificate, no recipe, or data, model or an adapter that are not there.
    """
    found, loaded = _read(run, overrides)
    stored = read_stored(run)
    recipe, block = loaded.recipe, loaded.recipe.auto
    if stored is None or block is None:
        raise SoraError(f"{run / REPORT} is of no run of sora auto")
    task, rows = _load(recipe)
    numbers = (found.rows[name].rows for name in (SCREENING, TEST))
    with _moved("auto.unlabelled=FILE"):
        held = deciding_rows(recipe, task, rows.train, *numbers)
    sets = row_sets(rows, held)
    reports = read_reports(run, len(found.candidates))
    differs = [*_changed_rows(found.rows, sets), *_changed_adapters(run, found, task)]
    differs += reports if isinstance(reports, list) else unreported(found, reports.written)
    scored, right = ScoresAgain(TOLERANCE), found
    if not differs and not isinstance(reports, list):
        parts = {_TEST: held[TEST], **{s: Part(r, rows.origin(r)) for s, r in rows.report.items()}}
        agreed, sizes, able = _again(run, found, loaded, task, parts, scored)
        right = expected(agreed, recipe, reports, sets, able, sizes)
    differs += [*unlike(stored, right), *out_of_order(right)]
    if same_words(stored, right) and not states(run / ADAPTER, right.lines()):
        differs.append(f"the card in {run / ADAPTER} does not say: {right.lines()[0]}")
    done = Rechecked(
        compared=scored.compared,
        differs=differs,
        unclear=scored.unclear,
        rows=scored.tolerated(sets[TEST].rows),
    )
    return found, done


def _again(
    run: Path,
    found: Certificate,
    loaded: LoadedRecipe,
    task: Task,
    parts: Mapping[str, Held],
    scored: ScoresAgain,
) -> tuple[Certificate, list[Size], Certifiable]:
    """Score all adapters and compare.

    Returns:
        The certificate with its scores where they agree, else those here; the adapters' sizes; and
        what the test rows can certify.
    """
    recipe, on = loaded.recipe, named_base(loaded)
    promise, seed = promise_of(recipe), recipe.auto.seed if recipe.auto is not None else 0
    confidence = promise.confidence
    whole = _measured(run / directory_of(None), recipe, task, parts, on)
    full = whole.scores[_TEST]
    able = Certifiable.on(len(full), confidence, full)
    promise = promise.settled(able, len(full))
    max_drop = promise.max_drop
    test = scored.score("full rank", found.full.test, full)
    reported: dict[str, float] = {}
    sizes, candidates = [], []
    for number, size in enumerate(found.candidates):
        name = directory_of(number)
        written = parts if number == found.chosen else {_TEST: parts[_TEST]}
        small = _measured(run / name, recipe, task, written, on)
        sizes.append(size_of(small.ranks, small.cost, promise.serve))
        here, own = None, {}
        if able.may_pass(max_drop):
            tested = small.scores[_TEST]
            here = SizeTest.of(
                tested.beside(full), drop_bound(full, tested, confidence, seed=seed), max_drop
            )
            if size.test is not None:
                here = scored.test(name, size.test, found.full.test, full, here, promise)
        for split in written.keys() - {_TEST}:
            was = found.full.reported.get(split, math.nan)
            reported[split] = scored.score(f"full rank, {split}", was, whole.scores[split])
            was = size.reported[split].score if split in size.reported else math.nan
            value = scored.score(f"{name}, {split}", was, small.scores[split])
            own[split] = Measured(score=value, drop=promise.drop(reported[split], value))
        candidates.append(size.model_copy(update={"test": here, "reported": own}))
    whole_size = found.full.model_copy(update={"test": test, "reported": reported})
    agreed = found.model_copy(update={"full": whole_size, "candidates": candidates})
    return agreed, sizes, able


def _read(run: Path, overrides: Sequence[str]) -> tuple[Certificate, LoadedRecipe]:
    found, report = read_certificate(run), read_report(run)
    if found is None:
        raise SoraError(
            f"{run} holds no certificate", hint="sora auto RECIPE --max-drop 0.5pt writes one"
        )
    if report is None:
        raise SoraError(f"{run / REPORT} is gone: it says which data and model were used")
    values = {**report.recipe, "start": None}  # what it started from may be elsewhere by now
    load = partial(load_stored, values, run / REPORT, report.name)
    return found, load_read(load, overrides, CERTIFICATE)


def _load(recipe: Recipe) -> tuple[Task, Rows]:
    with _moved("data.files.train=FILE, or data.path=DIR"):
        return load_task(recipe)


@contextmanager
def _moved(override: str) -> Iterator[None]:
    """Where rows are not found, say by which override to tell where they are by now."""
    try:
        yield
    except MissingDataError as error:
        error.hint = f"say where it is by now: {override}"
        raise


def _changed_rows(stored: Mapping[str, RowSet], here: Mapping[str, RowSet]) -> Iterator[str]:
    for name in {**stored, **here}:
        rows, now = stored.get(name), here.get(name)
        if now is None:
            yield f"there are no {name} rows any more"
        elif rows is None:
            yield f"the certificate knows of no {name} rows"
        elif now.digest != rows.digest:
            yield f"the {name} rows are not those of the certificate ({now.rows:,}, {rows.rows:,})"


def _changed_adapters(run: Path, found: Certificate, task: Task) -> list[str]:
    known = {run / ADAPTER: found.adapter, run / directory_of(None) / ADAPTER: found.full.digest}
    for number, size in enumerate(found.candidates):
        known[run / directory_of(number) / ADAPTER] = size.digest
    changed = []
    for place, digest in known.items():
        now = result_digest(place)
        if now is None:
            changed.append(f"{place} is gone")
        elif now != digest:
            changed.append(f"{place} is not the adapter of the certificate")
        said = deciding(read_sora_file(place / SORA_FILE)[0])
        changed += apart(said, deciding(task_meta(task)), (place / SORA_FILE, "the run"))
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
        ranks={path: int(f.live_terms().sum()) for path, f in adapter.layers.items()},
        cost={path: f.A.shape[1] + f.B.shape[0] for path, f in adapter.layers.items()},
        scores=scores,
    )
