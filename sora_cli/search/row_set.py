"""The parts of the rows of a search: their names, numbers and digests. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, Field

TRAIN, SCREENING, TEST = "train", "screening", "test"
"""Names of the parts whose rows decide; `part_of` names the reported splits."""
POOL = "pool"
"""With asked labels: the rows from which the test rows are drawn, once sizes were screened."""


def part_of(split: str) -> str:
    """Return the name of a reported split in `rows`, distinct from the parts that decide."""
    return f"reported {split}" if split in {TRAIN, SCREENING, TEST, POOL} else split


class RowSet(BaseModel):
    """The rows of one part: their split, number and digest."""

    split: str = Field(description="split of the recipe's data that the rows come from")
    rows: int = Field(
        description="number of rows; of test rows, of those that test: distinct inputs that "
        "training has not seen, where repeated rows are kept apart (`held`)"
    )
    digest: str = Field(description="SHA-256 of the content of all rows, in order")
    held: int | None = Field(
        None,
        description="of test rows: number of all rows that were held for the test, repeats "
        "included; null: repeats are not kept apart, and all rows test",
    )
    classes: dict[str, int] | None = Field(
        None,
        description="of labelled test rows with one class each: number of those of every class "
        "that test",
    )
    known: bool = Field(
        True,
        description="of test rows: false: not all that the models were trained on is recorded, so "
        "that these may be among it",
    )
    inputs: int | None = Field(
        None, description="of screening rows: number of different raw inputs among them"
    )
