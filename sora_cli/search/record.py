"""`auto.json`: the finished parts of a `sora auto` run, so that it can be continued. No torch here.

The result, with all figures that decided it, is in `certificate.json` and `report.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from sora_cli.core.errors import SoraError
from sora_cli.core.records import read_record
from sora_cli.recipe.auto import Basis
from sora_cli.report import MOVE_AWAY, Report
from sora_cli.run.opening import ELSEWHERE
from sora_cli.search.asked import Asked
from sora_cli.search.evidence import Candidate, Reference, Screened
from sora_cli.search.former_design import BOTH
from sora_cli.search.row_set import POOL, TEST, RowSet

FILE_NAME = "auto.json"


class SearchState(BaseModel):
    """The finished parts of a search whose sizes are tested one after the other."""

    asked: Asked | None = Field(
        None, description="the labels that were asked for; null: none, or none yet"
    )
    open: int = Field(
        0, description="rows whose label is missing and may change the outcome: it can be continued"
    )
    rows: dict[str, RowSet] = Field(
        default_factory=dict,
        description="the rows by part, as in certificate.json: a search is continued on the same",
    )
    full: Reference | None = Field(None, description="the run at full rank, once it is finished")
    screened: list[Screened] = Field(
        default_factory=list, description="sizes scored before healing, from largest to smallest"
    )
    candidates: list[Candidate] = Field(
        default_factory=list, description="sizes trained and tested, in this order"
    )
    stopped: bool = Field(False, description="whether a test has failed: no other size is tested")

    def named(self) -> list[Screened]:
        """Return the sizes chosen for training, from the largest to the smallest."""
        return [size for size in self.screened if size.named]

    def waiting(self) -> list[Screened]:
        """Return the chosen sizes that are not trained yet."""
        return [] if self.stopped else self.named()[len(self.candidates) :]

    def add(self, candidate: Candidate) -> None:
        """Record a trained size; after a failed test no other size is trained."""
        self.candidates = [*self.candidates, candidate]
        self.stopped = candidate.test is not None and candidate.test.failed


class AutoRecord(SearchState, Report):
    """The content of `auto.json`."""

    basis: Basis | None = Field(
        None,
        description="auto.basis as planned before training; null: there was nothing to choose",
    )

    @field_validator("basis", mode="before")
    @classmethod
    def _known_basis(cls, value: object) -> object:
        """Read the basis of a `former_design` as none: such a search is shown, not continued."""
        return None if value == BOTH else value

    def set_rows(self, rows: Mapping[str, RowSet], output: Path) -> None:
        """Record the rows by part; if the search was begun on other rows, raise `SoraError`."""
        if POOL in rows and TEST in self.rows:  # they are drawn later
            rows = {TEST: self.rows[TEST], **rows}
        for name in {**self.rows, **rows} if self.rows else ():
            before, now = self.rows.get(name), rows.get(name)
            if before != now:
                numbers = ["no rows" if part is None else f"{part.rows:,} rows of {part.split}"
                           for part in (before, now)]  # fmt: skip
                raise SoraError(
                    f"the {name} rows are not the same as when the run in '{output}' started",
                    where=f"{numbers[0]} then, {numbers[1]} now",
                    hint=f"restore them, or {ELSEWHERE}",
                )
        self.rows = dict(rows)

    def set_drawn(self, rows: RowSet, output: Path) -> None:
        """Record the test rows that were drawn from the pool."""
        self.set_rows({**self.rows, TEST: rows} if TEST in self.rows else self.rows, output)
        self.rows[TEST] = rows


def read_auto(directory: Path) -> AutoRecord | None:
    """Read the record in a directory; None if there is none."""
    return read_record(directory / FILE_NAME, AutoRecord, hint=MOVE_AWAY)
