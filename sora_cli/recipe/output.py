"""The recipe's `output` block: directory, label and card of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sora_cli.recipe.types import Block


class OutputBlock(Block):
    """Directory, label and card of the run's results."""

    dir: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="output directory; unset: runs/<recipe>-<method>-s<seed>"
    )
    label: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="what sora compare calls the run; unset: the options that tell it apart"
    )
    derived: list[str] = Field(
        [],
        description="keys whose values follow from other runs (a budget taken from another run of "
        "the same seed): sora compare groups runs whatever these are",
    )
    base_id: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = Field(
        None,
        description="Hub id of the base model where model.path is a copy on this disk; the adapter "
        "and its card name the base so. unset: told by the place in the Hub's cache",
    )
    license: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")] | None = Field(
        None, description="licence of the adapter in its card, as the Hub calls it: apache-2.0"
    )
