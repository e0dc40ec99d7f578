"""`sweep.json`: the state of a sweep's runs. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.errors import SoraError

FILE_NAME = "sweep.json"
State = Literal[
    "waiting", "running", "finished", "unfinished", "failed", "pruned", "blocked", "interrupted"
]
OVER: tuple[State, ...] = ("finished", "unfinished", "failed", "pruned", "blocked")
"""States in which nothing more happens in this call; an unfinished run waits for a person."""


class RunRecord(BaseModel):
    """The state of one run of the sweep."""

    name: str
    arguments: list[str] = Field(description="of sora, as last started")
    state: State = "waiting"
    attempts: int = Field(0, description="processes started in this call of the sweep")
    before: bool = Field(False, description="it was finished when the sweep was called")
    seconds: float | None = Field(None, description="wall time of its last process")
    error: str | None = None


class SweepRecord(BaseModel):
    """The content of `sweep.json`."""

    schema_version: int = 1
    file: str
    command: list[str]
    kind: str
    started: str
    finished: str | None = None
    engine: str
    runs: list[RunRecord] = Field(default_factory=list)

    def save(self, directory: Path) -> None:
        """Write the record to the sweep's directory."""
        write_text_atomic(directory / FILE_NAME, self.model_dump_json(indent=2) + "\n")

    def counts(self) -> dict[State, int]:
        """Count the runs by state, in order of first appearance."""
        counts: dict[State, int] = {}
        for run in self.runs:
            counts[run.state] = counts.get(run.state, 0) + 1
        return counts


def check_record(directory: Path) -> None:
    """Raise an error if an existing `sweep.json` is no sweep's record: it must not be replaced."""
    file = directory / FILE_NAME
    try:
        SweepRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise SoraError(
            f"'{file}' was not written by sora sweep and will not be replaced",
            hint="move it away, or name another directory: output.dir=DIR",
        ) from error
