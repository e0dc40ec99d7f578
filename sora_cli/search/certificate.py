"""`certificate.json`: the promise that `sora auto` makes for the written adapter, and its evidence.

The promise holds for the written adapter, this training run, and rows drawn like the test rows. All
directories in the file lie inside the run's own directory, so the run can be moved. Conclusions are
computed from the figures whenever a certificate is made or read (`conclude`); a sentence that is
stored in the file is never shown. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sora_cli.core.errors import SoraError
from sora_cli.core.records import Record, read_record
from sora_cli.recipe.families import BASE_MODEL
from sora_cli.report import BaseFacts, Score
from sora_cli.search.former_design import check_design, former_design
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import SCREENING, TEST, TRAIN, RowSet
from sora_cli.search.size import Size, saving
from sora_cli.search.sizes import last_passed
from sora_cli.search.statement import (
    NOT_ALONE,
    as_they_come,
    drop_by_answers,
    drop_by_labels,
    kept_by_constant,
    on_answers,
    scope,
    without_rows,
)

if TYPE_CHECKING:
    from sora_cli.search.bounds import Bound

FILE_NAME = "certificate.json"
PICTURE = "curve.png"
SCHEMA_VERSION = 3
"""Increased when a key or a sentence changes; earlier versions did not keep repeats apart."""
SIZES = "sizes"
"""Folder in the output directory that holds the directories of all runs."""
FULL = "full"


def directory_of(number: int | None) -> str:
    """Return the directory of a candidate's run (from 0; None: full rank), inside the output."""
    return f"{SIZES}/{FULL if number is None else number + 1}"


class BoundMethod(BaseModel):
    """The method that computes the upper bound of the drop, from differences row by row."""

    method: str = Field(description="the method, with its source")
    exact: bool = Field(
        description="true: the confidence holds for any number of rows; false: for many rows"
    )
    rows_alone: bool = Field(
        True,
        description="false: each row chooses among all test rows, so the rows depend on each other "
        "and no bound is exact",
    )
    smallest_drop: float | None = Field(
        description="the smallest drop that the test rows can be expected to certify: computed "
        "before training, or for an approximate bound after screening; null: not known"
    )


class Measured(BaseModel):
    """A score, and its drop against full rank on the same rows."""

    score: Score = Field(description="the metric")
    drop: Score = Field(description="drop against full rank; negative: better")


class SizeTest(Measured):
    """The test of a trained size on the test rows."""

    upper: Score = Field(description="upper bound of the drop at the promise's confidence")
    kept: bool = Field(description="whether the bound is within the promise")
    differing: int | None = Field(
        None, description="number of rows whose score differs from full rank's"
    )
    every: Score | None = Field(
        None,
        description="drop on all test rows as they come, where some repeat an input and do not "
        "test; it has no bound; null: all of them test",
    )
    refused: str | None = Field(
        None, description="reason for having no bound; null: there is a bound"
    )
    passed_over: bool = Field(
        False,
        description="whether so few rows differ from full rank that no such adapter could pass; "
        "this is no failure, and the testing goes on",
    )

    @classmethod
    def of(cls, score: float, bound: Bound, max_drop: float) -> Self:
        """Return the result of a size's test.

        Args:
            score: metric of the size on the test rows.
            bound: bound of the drop against full rank on the test rows.
            max_drop: the promise.
        """
        return cls(
            score=score,
            drop=bound.drop,
            upper=math.nan if bound.upper is None else bound.upper,
            kept=bound.keeps(max_drop),
            differing=bound.differing,
            every=bound.every,
            refused=bound.reason,
            passed_over=bound.passes_over(max_drop),
        )

    @property
    def verdict(self) -> str:
        """The result: `passed`, `failed` or `passed over`."""
        return "passed" if self.kept else "failed" if self.failed else "passed over"

    @property
    def failed(self) -> bool:
        """True if this test ended the testing."""
        return not self.kept and not self.passed_over

    def fails(self, max_drop: float) -> bool:
        """Return True if this test ends the testing, as `Bound.fails` does."""
        return not self.upper <= max_drop and not self.passed_over


class Screened(Size):
    """A cut of the shared checkpoint, scored on the screening rows before healing."""

    share: float = Field(description="share of full rank's parameters that the size is cut to")
    max_params: int = Field(description="the same as a number of parameters")
    screening: Measured = Field(
        description="on the screening rows; its drop is against the uncut checkpoint"
    )
    named: bool = Field(description="whether the size was chosen for training")
    expected: float | None = Field(
        None,
        description="for accuracy, F1 and similar metrics: the expected drop before healing, a "
        "mean of the drop on the screening rows and of a prior drop for its size, which counts as "
        "20 rows",
    )
    certifiable: float | None = Field(
        None,
        description="the smallest drop that the test rows can be expected to certify for this "
        "size, by the number of screening rows that differ or by the spread of their scores",
    )
    differing: float | None = Field(
        None,
        description="for an approximate bound: number of test rows that can be expected to differ "
        "from full rank; a size that differs on fewer than 20 has only a coarse bound",
    )


class Healed(Size):
    """A candidate: a size that was cut, healed and, if a test could pass, tested."""

    max_params: int = Field(description="number of parameters that it was cut to, at most")
    directory: str = Field(description="directory of its run, inside this run's directory")
    digest: str = Field(description="SHA-256 of its adapter, as in report.json")
    heal_steps: int = Field(description="optimiser steps after the cut")
    test: SizeTest | None = Field(
        description="its test; null: not tested, since no size could pass a test on these rows"
    )
    reported: dict[str, Measured] = Field(
        description="scores by reported split, of the written adapter only; they decide nothing"
    )


class FullRank(Size):
    """The run at full rank, the reference of all drops."""

    r_max: int = Field(description="rank of each layer")
    directory: str = Field(description="directory of its run, inside this run's directory")
    digest: str = Field(description="SHA-256 of its adapter, as in report.json")
    steps: int = Field(description="optimiser steps")
    cut_at: int = Field(description="the step whose checkpoint is cut to the sizes")
    test: Score = Field(description="the metric on the test rows")
    reported: dict[str, Score] = Field(description="the metric on each reported split")


class StoredCertificate(BaseModel):
    """The content of `certificate.json`. Unknown keys of later versions are ignored on reading."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = Field(SCHEMA_VERSION, description="version of the layout")
    status: Literal["certified", "not certified"] = Field(
        "not certified", description="whether the written adapter passed its test"
    )
    statement: str = Field(
        "", description="the promise as a sentence, or the reason for having none"
    )
    scope: str = Field("", description="the adapter, run and rows that the promise is about")
    promise: Promise = Field(description="the promise that was asked for")
    bound: BoundMethod = Field(description="the method of the test")
    full: FullRank = Field(description="the run at full rank")
    screened: list[Screened] = Field(
        description="sizes scored before healing, from largest to smallest"
    )
    candidates: list[Healed] = Field(
        description="sizes that were trained, in the order of their tests: from largest to smallest"
    )
    chosen: int = Field(0, description="number of the candidate that was written, from 0")
    next_smaller: int | None = Field(
        None,
        description="number of the candidate whose test failed; null: none failed, or none passed",
    )
    saved: str = Field("", description="the saving of the written adapter, as a sentence")
    rows: dict[str, RowSet] = Field(
        description="by part: train, screening, test, and the reported splits"
    )
    seeds: dict[str, int] = Field(
        description="training: seed of all runs; rows: seed that chooses screening and test rows"
    )
    base: BaseFacts = Field(description="the base model, as in report.json")
    adapter: str = Field(
        "", description="digest of the written adapter: SHA-256, as in report.json"
    )


def conclude(certificate: StoredCertificate) -> None:
    """Set all conclusions of a certificate from its figures, and overwrite stored conclusions.

    The promise, the sizes and their bounds determine which sizes passed, which size is written, and
    the sentence about it. Nothing else in the program draws these conclusions.
    """
    promise = certificate.promise
    candidates = certificate.candidates
    # tests first: choice, status and sentence depend on `kept`
    for test in (size.test for size in candidates if size.test is not None):
        test.kept = test.upper <= promise.max_drop
        test.passed_over = test.passed_over and not test.kept and not certificate.bound.exact
    certificate.chosen = choose(candidates)
    written = candidates[certificate.chosen]
    kept = written.test is not None and written.test.kept
    certificate.status = "certified" if kept else "not certified"
    certificate.statement, certificate.scope = _sentences(certificate, written)
    against = certificate.base.reference
    if against is not None:
        whole = (
            "the base model alone" if against == BASE_MODEL else f"the base model with {against}"
        )
        certificate.scope += f"; its rewards are measured against {whole}"
    classes = certificate.rows[TEST].classes or {}
    certificate.scope += without_rows(classes)
    if kept:
        certificate.statement += kept_by_constant(promise, classes, certificate.full.test)
    if not certificate.bound.rows_alone:
        certificate.statement += f"; {NOT_ALONE}"
    certificate.next_smaller = failed(candidates) if kept else None
    certificate.saved = saving(written, certificate.full, promise.serve)
    certificate.adapter = written.digest


def _sentences(certificate: StoredCertificate, written: Healed) -> tuple[str, str]:
    """Return the statement and the scope of a certificate."""
    promise, bound, test = certificate.promise, certificate.bound, written.test
    rows = certificate.rows[TEST]
    if promise.by_answers:
        by_answers = on_answers if promise.kind == "differ" else drop_by_answers
        text = by_answers(promise, test, rows)
    else:
        text = drop_by_labels(promise, bound, test, rows)
    every = None if test is None else test.every
    text += as_they_come(promise, rows=rows.rows, held=rows.held, drop=every)
    return text, scope(promise, distinct=rows.held is not None)


def choose(candidates: Sequence[Healed]) -> int:
    """Return the index of the candidate to write: the last that passed its test, else the first."""
    return last_passed(size.test is not None and size.test.kept for size in candidates) or 0


def failed(candidates: Sequence[Healed]) -> int | None:
    """Return the index of the candidate whose test ended the testing; None: no test failed."""
    tests = ((i, size.test) for i, size in enumerate(candidates))
    return next((i for i, test in tests if test is not None and test.failed), None)


class Certificate(StoredCertificate):
    """A certificate whose conclusions are computed from its figures, never taken from the file."""

    @model_validator(mode="after")
    def _conclude(self) -> Self:
        missing = {TRAIN, SCREENING, TEST} - self.rows.keys()
        if missing or not self.candidates:
            raise ValueError(f"no rows of {sorted(missing)}" if missing else "no candidates")
        conclude(self)
        return self

    @property
    def certified(self) -> bool:
        """True if the promise was certified."""
        return self.status == "certified"

    def lines(self) -> list[str]:
        """Return lines for the model card: the status, the promise, its scope and the saving."""
        status = f"{self.status.capitalize()}: {self.statement}."
        return [status, "", f"That is about {self.scope}. Saved: {self.saved}."]

    @property
    def written(self) -> Healed:
        """The candidate that was written: its adapter is the run's."""
        return self.candidates[self.chosen]


def read_certificate(run: Path) -> Certificate | None:
    """Read the certificate in a run's directory; None: none, or one of a `former_design`."""
    return None if former_design(run / FILE_NAME) is not None else _read(run, Certificate)


def required_certificate(run: Path) -> Certificate:
    """Read the certificate in a run's directory, which must have one of this version's design."""
    check_design(run / FILE_NAME)
    certificate = _read(run, Certificate)
    if certificate is None:
        raise SoraError(
            f"{run} holds no certificate", hint="sora auto RECIPE --max-drop 1pt writes one"
        )
    return certificate


def read_stored(run: Path) -> StoredCertificate | None:
    """Read a certificate with its stored conclusions, which `sora verify` compares with its own."""
    return _read(run, StoredCertificate)


def _read(run: Path, kind: type[Record]) -> Record | None:
    return read_record(run / FILE_NAME, kind, hint="sora auto RECIPE writes one")
