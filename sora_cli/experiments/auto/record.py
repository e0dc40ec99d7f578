"""`auto.json`: what `sora auto` has decided so far, for its own continuation. No torch here.

The result is in `certificate.json` and `report.json`; what a decision rests on is there, too.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sora_cli.report import MOVE_AWAY, Report, read_record
from sora_cli.run.certificate import Candidate, Full, Screened

FILE_NAME = "auto.json"


class AutoRecord(Report):
    """The content of `auto.json`."""

    full: Full | None = Field(None, description="the run at full rank, once it is finished")
    screened: list[Screened] = Field(
        default_factory=list, description="sizes scored unhealed, the largest first"
    )
    candidates: list[Candidate] = Field(
        default_factory=list, description="sizes trained and tested, in this order"
    )
    stopped: bool = Field(False, description="whether a test has failed: no other size is tested")

    def named(self) -> list[Screened]:
        """Return the sizes that are to be trained, the largest first."""
        return [size for size in self.screened if size.named]

    def waiting(self) -> list[Screened]:
        """Return the sizes that are still to be trained."""
        return [] if self.stopped else self.named()[len(self.candidates) :]

    def add(self, candidate: Candidate) -> None:
        """Note a size that was trained; a failed test is the last one."""
        self.candidates = [*self.candidates, candidate]
        self.stopped = candidate.test is not None and not candidate.test.kept


def read_auto(directory: Path) -> AutoRecord | None:
    """Read the record in a directory; None if there is none.

    Raises:
        SoraError: there is one that cannot be read.
    """
    return read_record(directory / FILE_NAME, AutoRecord, hint=MOVE_AWAY)
