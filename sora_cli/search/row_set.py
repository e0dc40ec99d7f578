"""The parts of the rows of a search: their names, numbers and digests. No torch here."""

from __future__ import annotations

from pydantic import BaseModel, Field

from sora_cli.search.halves import HALVES

TRAIN, SCREENING, TEST = "train", "screening", "test"
"""Names of the parts whose rows decide; `part_of` names the reported splits."""
REFIT = "refit"
"""Name of the part of all rows, on which a size was trained once more."""
ANSWERS = "answers"
"""Name of the part of rows without labels that test a drop beside labelled test rows."""


def half_name(half: int) -> str:
    """Return the name of the part that a half's adapters are trained on."""
    return f"half {half}"


def part_of(split: str) -> str:
    """Return the name of a reported split in `rows`, distinct from the parts that decide."""
    parts = {TRAIN, SCREENING, TEST, ANSWERS, REFIT, *map(half_name, HALVES)}
    return f"reported {split}" if split in parts else split


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
    inputs: int | None = Field(
        None, description="of screening rows: number of different raw inputs among them"
    )
