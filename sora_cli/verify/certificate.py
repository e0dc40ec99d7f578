"""Check a certificate again: load every adapter from its files and score it anew.

Scores are compared with a tolerance (`scored`), since another machine rounds differently: if a
verdict changes within the tolerance, the check cannot tell. Everything else must equal the facts in
the run's files (`expected`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.load import LoadedRecipe, load_stored
from sora_cli.recipe.reading import CERTIFICATE, load_read, named_base
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import FILE_NAME as REPORT
from sora_cli.report import read_report
from sora_cli.run.results import task_meta
from sora_cli.run.stored import load_adapted
from sora_cli.search.bounds import drop_bound
from sora_cli.search.certifiable import Certifiable
from sora_cli.search.certificate import (
    Certificate,
    Measured,
    SizeTest,
    directory_of,
    read_stored,
    required_certificate,
)
from sora_cli.search.parts import Held
from sora_cli.search.promise import Promise, promise_of
from sora_cli.search.row_set import TEST, RowSet
from sora_cli.search.size import Size, size_of
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_scorer
from sora_cli.verify.certificate_rows import RowsAgain
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


class Rechecked(BaseModel):
    """The outcome of a check.

    Attributes:
        compared: every figure that was computed again.
        differs: differences from the certificate, a sentence each.
        unclear: verdicts that changed within the tolerance, and bounds that are much better in the
            certificate, a sentence each.
        rows: number of differing rows that are tolerated.
    """

    compared: list[Compared]
    differs: list[str]
    unclear: list[str]
    rows: int

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
    rows = RowsAgain(recipe, certificate)
    differs = [*_changed_rows(certificate.rows, rows.sets)]
    differs += _changed_adapters(run, certificate, rows.task)
    reports = read_reports(run, len(certificate.candidates))
    if isinstance(reports, list):
        differs += reports
    else:
        differs += unreported(certificate, reports.written)
    scored, correct = ScoresAgain(TOLERANCE), certificate
    # scoring is the long part: not if other rows or adapters make the scores meaningless
    if not differs and not isinstance(reports, list):
        again = _Again(run, certificate, loaded, rows, scored)
        certifiable, sizes = again.compare()
        correct = expected(again.agreed, recipe, reports, rows.sets, certifiable, sizes)
    differs += [*unlike(stored, correct), *out_of_order(correct)]
    if same_words(stored, correct) and not card_matches(run / ADAPTER, correct.lines()):
        differs.append(f"the card in {run / ADAPTER} does not say: {correct.lines()[0]}")
    done = Rechecked(
        compared=scored.compared,
        differs=differs,
        unclear=[*scored.unclear, *scored.better],
        rows=scored.tolerated(rows.sets[TEST].rows),
    )
    return certificate, done


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
        rows: RowsAgain,
        scored: ScoresAgain,
    ) -> None:
        self._run, self.agreed, self._rows, self._scored = run, certificate, rows, scored
        self._recipe, self._on = loaded.recipe, named_base(loaded)

    def compare(self) -> tuple[Certifiable, list[Size]]:
        """Compare full rank and the candidates.

        Returns:
            The drop that the test rows can certify, and the sizes of the candidates' adapters.
        """
        stored, reported, scored = self.agreed, self._rows.reported, self._scored
        whole = self._measured(directory_of(None), reported)
        full, promise = whole.test, promise_of(self._recipe)
        certifiable = Certifiable.on(len(full), promise.confidence, full)
        promise = promise.settled(certifiable, len(full))
        score, known = scored.score("full rank", stored.full.test, full), dict[str, float]()
        sizes, candidates = [], []
        for number, size in enumerate(stored.candidates):
            # only the chosen adapter was scored on the reported splits
            written = reported if number == stored.chosen else {}
            place = directory_of(number)
            small = self._measured(place, written)
            sizes.append(size_of(small.ranks, small.cost, promise.serve))
            here, own = None, {}
            if certifiable.may_pass(promise.max_drop):
                here = self._tested(place, size.test, full, small.test, promise)
            for split in written:
                was = stored.full.reported.get(split, math.nan)
                full_here = scored.score(f"full rank, {split}", was, whole.reported[split])
                known[split] = full_here
                was = size.reported[split].score if split in size.reported else math.nan
                value = scored.score(f"{place}, {split}", was, small.reported[split])
                own[split] = Measured(score=value, drop=promise.drop(full_here, value))
            candidates.append(size.model_copy(update={"test": here, "reported": own}))
        full_rank = stored.full.model_copy(update={"test": score, "reported": known})
        self.agreed = stored.model_copy(update={"full": full_rank, "candidates": candidates})
        return certifiable, sizes

    def _measured(self, place: str, reported: Mapping[str, Held]) -> _Measured:
        return _measured(self._run / place, self._recipe, self._rows, reported, self._on)

    def _tested(
        self,
        place: str,
        stored: SizeTest | None,
        full: RowScores,
        small: RowScores,
        promise: Promise,
    ) -> SizeTest:
        """Return a size's test here, with the stored figures where they agree.

        Args:
            place: directory of the candidate.
            full, small: scores at full rank and of the candidate.
        """
        seed = self._recipe.auto.seed if self._recipe.auto is not None else 0
        bound = drop_bound(full, small, promise.confidence, seed=seed)
        here = SizeTest.of(small.beside(full), bound, promise.max_drop)
        if stored is None:
            return here
        return self._scored.test(place, stored, self.agreed.full.test, full, here, promise)


def _read_run(run: Path, overrides: Sequence[str]) -> tuple[Certificate, LoadedRecipe]:
    certificate, report = required_certificate(run), read_report(run)
    if report is None:
        raise SoraError(f"{run / REPORT} is missing: it says which data and model were used")
    load = partial(load_stored, report.recipe, run / REPORT, report.name)
    loaded = load_read(load, overrides, CERTIFICATE)
    return certificate, replace(loaded, recipe=loaded.recipe.to_score())


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
    known[run / directory_of(None) / ADAPTER] = certificate.full.digest
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
    """An adapter's ranks, the cost of a component of each layer, and its scores."""

    ranks: Mapping[str, int]
    cost: Mapping[str, int]
    test: RowScores
    reported: Mapping[str, RowScores]


def _measured(
    directory: Path, recipe: Recipe, rows: RowsAgain, reported: Mapping[str, Held], on: str | None
) -> _Measured:
    """Score an adapter on the test rows, and on reported rows."""
    adapter = read_adapter(directory / ADAPTER)
    base, _ = load_adapted(adapter, recipe, rows.task, on=on, strict=True)
    test = rows.test_on(base)
    encoded = {name: part.encoded(rows.task, base) for name, part in reported.items()}
    with tempfile.TemporaryDirectory() as scratch:
        scorer = build_scorer(recipe, rows.task, base, Path(scratch))
        return _Measured(
            ranks={path: int(f.live_components().sum()) for path, f in adapter.layers.items()},
            cost={path: f.A.shape[1] + f.B.shape[0] for path, f in adapter.layers.items()},
            test=test.scores(scorer),
            reported={n: part.scores(scorer, encoded[n]) for n, part in reported.items()},
        )
