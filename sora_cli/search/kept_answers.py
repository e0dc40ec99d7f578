"""What a command remembers of the table in which it asks for labels: no rows, but their ids.

It is for its owner alone: the file is readable by nobody else, and no command prints, copies or
publishes it. Of `sora auto` it stands in the run's directory. A command that has no directory
before it is finished keeps it beside the table, and in the end with its result, too, so that
`sora verify --certificate` finds the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from sora_cli.core.atomic import remove_file, write_bytes_atomic
from sora_cli.core.errors import SoraError
from sora_cli.core.json_text import readable_json
from sora_cli.model.files import ASKED
from sora_cli.search.ask_table import Given, Question

FILE_NAME = ASKED
"""In the directory of a run or of an adapter."""


class Memory(BaseModel):
    """The content of the file."""

    about: dict[str, Any] = Field(
        default_factory=dict,
        description="what the labels were asked for: another promise asks anew; of sora auto it "
        "stands in auto.json",
    )
    planned: int = Field(0, description="labels by which the number of test rows was planned")
    sizes: int = Field(0, description="number of the largest sizes whose rows are asked")
    by_size: bool = Field(
        False, description="whether sizes are asked about one after the other; see `Asked`"
    )
    all_lost: bool = Field(False, description="how the test rows were planned; see `Asked`")
    rows: list[str] = Field(default_factory=list, description="ids of the rows that were asked")
    answers: dict[str, Given] = Field(
        default_factory=dict, description="labels as they were read, by id"
    )
    changed: list[str] = Field(
        default_factory=list, description="rows whose label was changed after it was read, by id"
    )


class Kept:
    """A file with what is remembered."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, folder: Path) -> Kept:
        """Return what the directory of a run or of an adapter keeps."""
        return cls(folder / FILE_NAME)

    @classmethod
    def beside(cls, table: Path) -> Kept:
        """Return what stands beside a table."""
        return cls(table.with_name(f"{table.name}.json"))

    def read(self) -> Memory:
        """Return what is remembered; without a file, nothing is."""
        if not self.path.is_file():
            return Memory()
        try:
            return Memory.model_validate_json(self.path.read_bytes())
        except ValidationError as error:
            raise SoraError(f"{self.path} is damaged", hint="restore it") from error

    def rows(self) -> list[str]:
        """Return the ids of the rows that were asked; empty: none were."""
        return self.read().rows

    def answers(self) -> dict[str, Given]:
        """Return the labels that were read, by id."""
        return self.read().answers

    def keep_rows(self, rows: Sequence[Question]) -> None:
        """Remember the rows that were asked."""
        self.update(rows=[row.id for row in rows])

    def keep_answers(self, given: Mapping[str, Given]) -> None:
        """Remember the labels that were read, by id."""
        self.update(answers=dict(sorted(given.items())))

    def update(self, **values: Any) -> None:
        """Write the file with other values."""
        self.write(self.read().model_copy(update=values))

    def write(self, memory: Memory) -> None:
        """Write the file."""
        text = readable_json(memory.model_dump(mode="json"))
        write_bytes_atomic(self.path, text.encode(), private=True)

    def forget(self) -> None:
        """Delete the file, if there is one."""
        if self.path.is_file():
            remove_file(self.path)
