"""The record of what a search has asked people: numbers and digests, no rows. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pydantic import BaseModel, Field

from sora_cli.search.promise import Promise


class Asked(BaseModel):
    """The labels that were asked for, and the answers."""

    planned: int = Field(
        description="largest number of rows to label when the number of test rows was planned"
    )
    rows: int = Field(description="number of test rows, planned by the sizes on the screening rows")
    sizes: int = Field(
        0, description="number of the largest sizes whose rows to label are not too many together"
    )
    by_size: bool = Field(
        False,
        description="true: a size's rows are asked once the one before it is certified; false: "
        "those of all sizes at once (--ask-all, and in earlier versions)",
    )
    all_lost: bool = Field(
        False,
        description="true: as many rows test as the largest size needs if each row that differs is "
        "lost; false: if half of them are (of two given models, and in earlier versions)",
    )
    wanted: int = Field(0, description="rows in the table: each has a place for a label")
    answered: int = Field(0, description="rows with a label")
    twice: int = Field(0, description="rows with two labels")
    agreed: int = Field(0, description="rows with two labels that agree")
    answers: str = Field("", description="SHA-256 of ids and labels, which the run keeps")
    changed: list[str] = Field(
        default_factory=list,
        description="rows, by their id in the table, whose label was changed after it was read: "
        "then nothing is promised",
    )

    def first(self, promise: Promise) -> Promise:
        """Return the promise with the number of labels by which the test rows were planned."""
        return promise.model_copy(update={"labels": self.planned})

    def with_answers(self, given: Mapping[str, tuple[str, str]]) -> Asked:
        """Return the record with the labels of the rows that are asked, by id."""
        both = [labels for labels in given.values() if all(labels)]
        return self.model_copy(
            update={
                "wanted": len(given),
                "answered": sum(any(labels) for labels in given.values()),
                "twice": len(both),
                "agreed": sum(first == second for first, second in both),
                "answers": digest_of(given),
            }
        )


def digest_of(given: Mapping[str, tuple[str, str]]) -> str:
    """Return the SHA-256 of labels by id; the order of the rows does not matter."""
    rows = sorted([key, *labels] for key, labels in given.items())
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
