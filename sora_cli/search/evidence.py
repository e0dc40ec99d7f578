"""`certificate.json`: a promise about an adapter, the rows and sizes that test it, what follows.

It stands beside every adapter that a promise made: in the directory of a search (`sora auto`) or of
a healed run, and in the directory of an adapter that `sora prune` or `sora extract` wrote. The
promise holds for the written adapter, against its reference, on rows drawn like the test rows.

Only figures are read. What follows from them (which sizes passed, which is written, every sentence)
is computed by `conclude` whenever a certificate is made or read; what a file says of it is never
shown. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.errors import DiscontinuedError, SoraError
from sora_cli.core.json_text import readable_json
from sora_cli.core.records import read_record
from sora_cli.model.files import CERTIFICATE
from sora_cli.report import BaseFacts, Score
from sora_cli.search import words
from sora_cli.search.asked import Asked
from sora_cli.search.former_design import check_design, former_design
from sora_cli.search.kept_answers import Kept, Memory
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import SCREENING, TEST, TRAIN, RowSet
from sora_cli.search.size import Size, saving
from sora_cli.search.sizes import last_passed
from sora_cli.search.statistic import FULL_RANK, Bound, BoundMethod, Nouns, Statistic
from sora_cli.search.statistics import statistic_in

FILE_NAME = CERTIFICATE
PICTURE = "curve.png"
SCHEMA_VERSION = 4
"""Increased when a key or a sentence changes. Versions before 4 are of `sora auto` alone, and
versions before 3 did not keep repeats apart."""
SIZES = "sizes"
"""Folder in the output directory that holds the directories of all runs."""
FULL = "full"

Command = Literal["auto", "prune", "heal", "extract", "verify"]


def directory_of(number: int | None) -> str:
    """Return the directory of a candidate's run (from 0; None: full rank), inside the output."""
    return f"{SIZES}/{FULL if number is None else number + 1}"


class Measured(BaseModel):
    """A score, and its drop against the reference on the same rows."""

    score: Score = Field(description="the metric")
    drop: Score = Field(description="drop against the reference; negative: better")


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
        "size, by the number of screening rows that differ or by the spread of their scores; of "
        "labels that are asked for, the drop if each row that differs is lost, less `expected`",
    )
    differing: float | None = Field(
        None,
        description="for an approximate bound: number of test rows that can be expected to differ "
        "from full rank; a size that differs on fewer than 20 has only a coarse bound",
    )


class Candidate(Size):
    """A size that was made and, if a test could pass, tested."""

    max_params: int | None = Field(
        None, description="of a size that was healed: number of parameters that it was cut to"
    )
    directory: str | None = Field(
        None,
        description="directory of its run, inside this run's directory; null: it was cut only, and "
        "is kept only if it was written",
    )
    digest: str | None = Field(
        None, description="SHA-256 of its adapter, as in report.json; null: it is not kept"
    )
    heal_steps: int | None = Field(None, description="optimiser steps after the cut; null: none")
    test: Bound | None = Field(
        description="its test; null: not tested, since no size could pass a test on these rows"
    )
    reported: dict[str, Measured] = Field(
        default_factory=dict,
        description="scores by reported split, of the written adapter only; they decide nothing",
    )


class Reference(Size):
    """The model that all drops are measured against."""

    name: str = Field(FULL_RANK, description="what it is: full rank, the uncut adapter, ...")
    within: bool = Field(
        False, description="whether it is written if no smaller size is certified: nothing is lost"
    )
    directory: str = Field(
        description="its directory: of sora auto inside this run's; else where it was then"
    )
    digest: str = Field(description="SHA-256 of its adapter; of a whole model, its fingerprint")
    test: Score = Field(description="the metric on the test rows")
    r_max: int | None = Field(None, description="of sora auto: rank of each layer")
    steps: int | None = Field(None, description="of sora auto: optimiser steps")
    cut_at: int | None = Field(
        None, description="of sora auto: the step whose checkpoint is cut to the sizes"
    )
    reported: dict[str, Score] = Field(
        default_factory=dict, description="the metric on each reported split"
    )


class Evidence(BaseModel):
    """The content of `certificate.json`. Unknown keys of later versions are ignored on reading."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = Field(SCHEMA_VERSION, description="version of the layout")
    command: Command = Field("auto", description="the command that made the promise")
    status: Literal["certified", "not certified"] = Field(
        "not certified", description="whether the written adapter passed its test"
    )
    statement: str = Field(
        "", description="the promise as a sentence, or the reason for having none"
    )
    scope: str = Field("", description="the adapter, run and rows that the promise is about")
    promise: Promise = Field(description="the promise that was asked for")
    bound: BoundMethod = Field(description="the method of the test")
    full: Reference = Field(description="the model that drops are measured against")
    screened: list[Screened] = Field(
        default_factory=list, description="sizes scored before healing, from largest to smallest"
    )
    candidates: list[Candidate] = Field(
        description="sizes that were made, in the order of their tests: from largest to smallest"
    )
    chosen: int | None = Field(
        None, description="number of the candidate that was written, from 0; null: the reference"
    )
    next_smaller: int | None = Field(
        None,
        description="number of the candidate whose test failed; null: none failed, or none passed",
    )
    saved: str = Field("", description="the saving of the written adapter, as a sentence")
    rows: dict[str, RowSet] = Field(
        description="by part: train, screening, test, and the reported splits; of a finished "
        "adapter those that test"
    )
    asked: Asked | None = Field(
        None, description="the labels that were asked for; null: the test asked for none"
    )
    seeds: dict[str, int] = Field(
        description="training: seed of all runs; rows: seed that chooses screening and test rows"
    )
    base: BaseFacts | None = Field(
        None, description="the base model, as in report.json; null: in sora.json beside the adapter"
    )
    recipe: dict[str, Any] | None = Field(
        None,
        description="of a finished adapter: the recipe of the test rows, resolved, with the "
        "promise in its auto block; null: in report.json",
    )
    adapter: str = Field(
        "", description="digest of the written adapter: SHA-256, as in report.json"
    )

    _labels: Memory | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _conclude(self) -> Self:
        needed = {TRAIN, SCREENING, TEST} if self.command == "auto" else {TEST}
        if missing := needed - self.rows.keys():
            raise ValueError(f"no rows of {sorted(missing)}")
        if not self.candidates and not self.full.within:
            raise ValueError("no candidates")
        conclude(self)
        return self

    @property
    def certified(self) -> bool:
        """True if the promise was certified, or nothing was lost."""
        return self.status == "certified"

    @property
    def worse(self) -> bool:
        """True if one of two compared models is shown to break the promise."""
        test = self.candidates[0].test if self.command == "verify" else None
        return test is not None and test.breaks(self.promise.max_drop)

    @property
    def written(self) -> Candidate | None:
        """The candidate that was written; None: the reference."""
        return None if self.chosen is None else self.candidates[self.chosen]

    @property
    def statistic(self) -> Statistic:
        """What was compared."""
        return statistic_in(self.bound, self.promise)

    @property
    def nouns(self) -> Nouns:
        """The words of the statistic about this promise."""
        return self.statistic.nouns(self.promise, self.full.name)

    @property
    def first_tested(self) -> Bound | None:
        """The first test of a size that differs on many rows; without one, the first test."""
        tests = [size.test for size in self.candidates if size.test is not None]
        return next((test for test in tests if test.is_of_many), next(iter(tests), None))

    def text(self) -> str:
        """Return the text of the file."""
        return readable_json(json.loads(self.model_dump_json()))  # NaN becomes null

    def lineage(self) -> dict[str, Any]:
        """Return the facts of a certificate for an adapter's lineage, with the promise's number."""
        return {
            "given": self.promise.given,
            "certified": self.certified,
            "recipe_digest": recipe_digest(self.recipe or {}),
        }

    def keep_labels(self, memory: Memory | None) -> Self:
        """Have the labels that were given kept beside the certificate, and return it."""
        self._labels = memory
        return self

    def write(self, folder: Path) -> None:
        """Write the certificate, and the labels beside it."""
        kept = Kept.of(folder)
        kept.forget() if self._labels is None else kept.write(self._labels)
        write_text_atomic(folder / FILE_NAME, self.text())

    def certify(self, folder: Path) -> list[str]:
        """Write the certificate of the adapter in a folder, and return its lines for the card."""
        from sora_cli.adapter.digest import result_digest  # heavier than reading

        self.adapter = result_digest(folder) or ""
        if self.written is not None:
            self.written.digest = self.adapter
        conclude(self)
        self.write(folder)
        return self.lines()

    def lines(self) -> list[str]:
        """Return lines for the model card: the status, the promise, its scope and the saving."""
        status = f"{self.status.capitalize()}: {self.statement}."
        return [status, "", f"That is about {self.scope}. Saved: {self.saved}."]


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """Return the digest by which an adapter's lineage knows the recipe of its certificate."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def conclude(evidence: Evidence) -> None:
    """Set everything that follows from the figures, and overwrite what was stored of it.

    The promise, the sizes and their bounds determine which sizes passed, which one is written, and
    the sentence about it. Nothing else in the program draws these conclusions.
    """
    for size in evidence.candidates:
        if size.test is not None:
            size.test = size.test.judged(evidence.promise.max_drop, exact=evidence.bound.exact)
    evidence.chosen = _chosen(evidence)
    written, passed = evidence.written, last_passed(map(_passed, evidence.candidates)) is not None
    evidence.status = "certified" if passed or written is None else "not certified"
    if evidence.asked is not None and evidence.asked.changed:
        evidence.status = "not certified"
    evidence.statement, evidence.scope = words.statement(evidence), words.scope(evidence)
    evidence.next_smaller = failed(evidence.candidates) if passed else None
    evidence.saved = saving(written or evidence.full, evidence.full, evidence.promise.serve)
    if written is not None:
        evidence.adapter = written.digest or ""


def _passed(size: Candidate) -> bool:
    return size.test is not None and size.test.kept


def _chosen(evidence: Evidence) -> int | None:
    """Return the last size that passed its test.

    If none passed: of `sora auto`, the largest; else the last before the first with a drop above
    the promise, which may be the reference.
    """
    if evidence.command == "auto":
        return choose(evidence.candidates)
    place = last_passed(map(_passed, evidence.candidates))
    if place is not None:
        return place
    drops = [None if size.test is None else size.test.drop for size in evidence.candidates]
    most = evidence.promise.max_drop
    bad = (i for i, drop in enumerate(drops) if drop is None or not drop <= most)
    last = next(bad, len(drops)) - 1
    return last if last >= 0 else None if evidence.full.within else 0


def failed(candidates: list[Candidate]) -> int | None:
    """Return the index of the candidate whose test ended the testing; None: no test failed."""
    tests = ((i, size.test) for i, size in enumerate(candidates))
    return next((i for i, test in tests if test is not None and test.failed), None)


def choose(candidates: list[Candidate]) -> int:
    """Return the candidate of `sora auto` to write: the last that passed its test, or the first."""
    return last_passed(map(_passed, candidates)) or 0


def read_certificate(run: Path) -> Evidence | None:
    """Read the certificate in a directory; None: none, or one of a `former_design`."""
    if former_design(run / FILE_NAME) is not None:
        return None
    return read_record(run / FILE_NAME, Evidence, hint="repeat the command that wrote it")


def certificate_of_adapter(folder: Path) -> Evidence | None:
    """Return the certificate of an adapter, beside its files or its run's; None: there is none.

    A certificate of other files is none, such as that of the whole adapter beside a smaller one.
    """
    from sora_cli.adapter.digest import result_digest  # heavier than reading

    for place in (folder, folder.resolve().parent):
        try:
            found = read_certificate(place)
        except SoraError:  # its own readers report damage
            return None
        if found is not None and found.adapter == result_digest(folder):
            return found
    return None


def required_certificate(run: Path) -> Evidence:
    """Read the certificate in a directory, which must have one of this version's design."""
    check_design(run / FILE_NAME)
    certificate = read_certificate(run)
    if certificate is None and _was_promised(run):
        raise DiscontinuedError(
            f"the promise of '{run}' was recorded by an earlier version: it cannot be tested again"
        )
    if certificate is None:
        raise SoraError(
            f"{run} holds no certificate",
            hint="--max-drop 1pt of sora auto, prune or extract writes one",
        )
    return certificate


def _was_promised(run: Path) -> bool:
    """Return true for an adapter whose promise stands in `sizes.json` or in its lineage alone."""
    from sora_cli.adapter.metadata import read_sora_file
    from sora_cli.model.files import SORA_FILE

    lineage = read_sora_file(run / SORA_FILE)[0].lineage
    names = {"max_drop", "max_differ"}
    return (run / "sizes.json").is_file() or any(names & entry.keys() for entry in lineage)
