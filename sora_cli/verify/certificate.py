"""A certificate checked again: every tested size is loaded from its files and scored anew.

It may be on another machine, where sums come out in another order: a row may then fall on the other
side. So scores agree if they are apart by as much as a few rows, and a verdict that turns within
that cannot be told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel

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
from sora_cli.report import Score, read_report
from sora_cli.run.certificate import TEST, Candidate, Certificate, RowSet, read_certificate
from sora_cli.run.certify.bounds import drop_bound
from sora_cli.run.choosing import Part, choosing_rows, row_sets
from sora_cli.run.prepare import load_task
from sora_cli.run.results import task_meta
from sora_cli.run.stored import load_adapted
from sora_cli.tasks.base import Task
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.trainer import build_scorer
from sora_cli.verify.verdict import Verdict

TOLERANCE = 0.005
"""Share of the rows that may fall on the other side on another machine; one row always may."""


class Compared(BaseModel):
    """One figure of the certificate, and what it is here.

    Attributes:
        name: what it is of.
        apart: how far it may be from the other.
    """

    name: str
    stored: Score
    here: Score
    apart: float

    @property
    def agrees(self) -> bool:
        """True if they are no further apart; two that are no numbers agree, too."""
        both = self.stored != self.stored and self.here != self.here
        return both or abs(self.stored - self.here) <= self.apart


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
    """Score the adapters of a run's certificate again, on the rows it names.

    Args:
        overrides: of its recipe: where its data or model are by now. Rows and adapters must be
            those of the certificate all the same.

    Raises:
        SoraError: no certificate, no recipe, or data, model or an adapter that are not there.
    """
    found, loaded = _read(run, overrides)
    recipe, on = loaded.recipe, named_base(loaded)
    task, rows = _load(recipe)
    held = choosing_rows(task, found.rows["screening"].rows, found.seeds["rows"])
    changed = list(_changed_rows(found.rows, row_sets(rows, held)))
    changed += _changed_adapters(run, found, task)
    tolerated = max(int(TOLERANCE * found.rows[TEST].rows), 1)
    compared: list[Compared] = []
    unclear: list[str] = []
    if not changed:
        full = _scores(run / found.full.directory, recipe, task, held[TEST], on=on)
        apart = tolerated / len(full)
        compared.append(_compared("full rank", found.full.test, full.value, _apart(full, apart)))
        for size in found.candidates:
            if size.test is not None:
                small = _scores(run / size.directory, recipe, task, held[TEST], on=on)
                compared += _compare(found, size, full, small, apart, unclear)
    changed += [
        f"{one.name}: {one.stored:.6g} in the certificate, {one.here:.6g} here"
        for one in compared
        if not one.agrees
    ]
    done = Rechecked(compared=compared, differs=changed, unclear=unclear, rows=tolerated)
    return found, done


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
    """Load the rows; where they are not found, say how to tell where they are by now."""
    try:
        return load_task(recipe)
    except MissingDataError as error:
        error.hint = "say where it is by now: data.files.train=FILE, or data.path=DIR"
        raise


def _changed_rows(stored: Mapping[str, RowSet], here: Mapping[str, RowSet]) -> Iterator[str]:
    for name, rows in stored.items():
        now = here.get(name)
        if now is None:
            yield f"there are no {name} rows any more"
        elif now.digest != rows.digest:
            yield f"the {name} rows are not those of the certificate ({now.rows:,}, {rows.rows:,})"


def _changed_adapters(run: Path, found: Certificate, task: Task) -> list[str]:
    known = {run / ADAPTER: found.adapter, run / found.full.directory / ADAPTER: found.full.digest}
    known |= {run / size.directory / ADAPTER: size.digest for size in found.candidates}
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


def _scores(
    directory: Path, recipe: Recipe, task: Task, rows: Part, *, on: str | None
) -> RowScores:
    base, _ = load_adapted(read_adapter(directory / ADAPTER), recipe, task, on=on, strict=True)
    encoded = rows.encoded(task, base)
    with tempfile.TemporaryDirectory() as scratch:
        return build_scorer(recipe, task, base, Path(scratch)).row_scores(encoded)


def _compare(
    found: Certificate,
    size: Candidate,
    full: RowScores,
    small: RowScores,
    apart: float,
    unclear: list[str],
) -> list[Compared]:
    """Compare a size's figures; a verdict that turns although they agree goes to `unclear`."""
    test = size.test
    assert test is not None
    here = drop_bound(full, small, found.promise.confidence, seed=found.seeds["rows"])
    name, allowed = size.directory, _apart(full, apart)
    upper = float("nan") if here.upper is None else here.upper
    if here.keeps(found.promise.max_drop) != test.kept:
        unclear.append(
            f"{name}: the bound is {test.upper:.6g} in the certificate and {upper:.6g} here, on "
            f"two sides of {found.promise.max_drop:g}"
        )
    return [
        _compared(f"{name}, score", test.score, small.value, allowed),
        _compared(f"{name}, drop", test.drop, here.drop, 2 * allowed),
        _compared(f"{name}, bound", test.upper, upper, 4 * allowed),
    ]


def _compared(name: str, stored: float, here: float, apart: float) -> Compared:
    return Compared(name=name, stored=stored, here=here, apart=apart)


def _apart(scores: RowScores, share: float) -> float:
    """Return how far a metric may be from itself, if so many of its rows differ."""
    return share * max(1.0, abs(scores.value))
