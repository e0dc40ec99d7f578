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
from dataclasses import dataclass
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
"""Share of the rows that may change their outcome on another machine; one row always may."""
_TEST = ""
"""Key of the test rows beside the reported splits; a split may already be called "test"."""


class Rechecked(BaseModel):
    """The outcome of a check.

    Attributes:
        compared: every figure that was computed again.
        differs: differences from the certificate, a sentence each.
        unclear: verdicts that changed within the tolerance, a sentence each.
        rows: number of differing rows that are tolerated.
    """

    compared: list[Compared]
    differs: list[str]
    unclear: list[str]
    rows: int

    @property
    def verdict(self) -> Verdict:
        """DIFFERENT if anything differs, UNKNOWN if only a verdict is unclear, else SAME."""
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
    task, rows = _load(recipe)
    numbers = (certificate.rows[name].rows for name in (SCREENING, TEST))
    with _moved("auto.unlabelled=FILE"):
        held = deciding_rows(recipe, task, rows.train, *numbers)
    sets = row_sets(rows, held)
    reports = read_reports(run, len(certificate.candidates))
    differs = [*_changed_rows(certificate.rows, sets), *_changed_adapters(run, certificate, task)]
    differs += reports if isinstance(reports, list) else unreported(certificate, reports.written)
    scored, correct = ScoresAgain(TOLERANCE), certificate
    # scoring is the long part: not if other rows or adapters make the scores meaningless
    if not differs and not isinstance(reports, list):
        parts = {_TEST: held[TEST], **{s: Part(r, rows.origin(r)) for s, r in rows.report.items()}}
        agreed, sizes, certifiable = _score_again(run, certificate, loaded, task, parts, scored)
        correct = expected(agreed, recipe, reports, sets, certifiable, sizes)
    differs += [*unlike(stored, correct), *out_of_order(correct)]
    if same_words(stored, correct) and not card_matches(run / ADAPTER, correct.lines()):
        differs.append(f"the card in {run / ADAPTER} does not say: {correct.lines()[0]}")
    done = Rechecked(
        compared=scored.compared,
        differs=differs,
        unclear=scored.unclear,
        rows=scored.tolerated(sets[TEST].rows),
    )
    return certificate, done


def _score_again(
    run: Path,
    certificate: Certificate,
    loaded: LoadedRecipe,
    task: Task,
    parts: Mapping[str, Held],
    scored: ScoresAgain,
) -> tuple[Certificate, list[Size], Certifiable]:
    """Score all adapters and compare.

    Returns:
        The certificate with its own scores if they agree, else with those computed here; the
        adapters' sizes; and the drops that the test rows can certify.
    """
    recipe, on = loaded.recipe, named_base(loaded)
    promise, seed = promise_of(recipe), recipe.auto.seed if recipe.auto is not None else 0
    confidence = promise.confidence
    whole = _measured(run / directory_of(None), recipe, task, parts, on)
    full = whole.scores[_TEST]
    certifiable = Certifiable.on(len(full), confidence, full)
    promise = promise.settled(certifiable, len(full))
    max_drop = promise.max_drop
    test = scored.score("full rank", certificate.full.test, full)
    reported: dict[str, float] = {}
    sizes, candidates = [], []
    for number, size in enumerate(certificate.candidates):
        name = directory_of(number)
        # only the chosen adapter was scored on the reported splits
        written = parts if number == certificate.chosen else {_TEST: parts[_TEST]}
        small = _measured(run / name, recipe, task, written, on)
        sizes.append(size_of(small.ranks, small.cost, promise.serve))
        here, own = None, {}
        if certifiable.may_pass(max_drop):
            tested = small.scores[_TEST]
            here = SizeTest.of(
                tested.beside(full), drop_bound(full, tested, confidence, seed=seed), max_drop
            )
            if size.test is not None:
                here = scored.test(name, size.test, certificate.full.test, full, here, promise)
        for split in written.keys() - {_TEST}:
            was = certificate.full.reported.get(split, math.nan)
            reported[split] = scored.score(f"full rank, {split}", was, whole.scores[split])
            was = size.reported[split].score if split in size.reported else math.nan
            value = scored.score(f"{name}, {split}", was, small.scores[split])
            own[split] = Measured(score=value, drop=promise.drop(reported[split], value))
        candidates.append(size.model_copy(update={"test": here, "reported": own}))
    whole_size = certificate.full.model_copy(update={"test": test, "reported": reported})
    agreed = certificate.model_copy(update={"full": whole_size, "candidates": candidates})
    return agreed, sizes, certifiable


def _read_run(run: Path, overrides: Sequence[str]) -> tuple[Certificate, LoadedRecipe]:
    certificate, report = read_certificate(run), read_report(run)
    if certificate is None:
        raise SoraError(
            f"{run} holds no certificate", hint="sora auto RECIPE --max-drop 0.5pt writes one"
        )
    if report is None:
        raise SoraError(f"{run / REPORT} is missing: it says which data and model were used")
    values = {**report.recipe, "start": None}  # what it started from may be elsewhere by now
    load = partial(load_stored, values, run / REPORT, report.name)
    return certificate, load_read(load, overrides, CERTIFICATE)


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
    known = {
        run / ADAPTER: certificate.adapter,
        run / directory_of(None) / ADAPTER: certificate.full.digest,
    }
    for number, size in enumerate(certificate.candidates):
        known[run / directory_of(number) / ADAPTER] = size.digest
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
