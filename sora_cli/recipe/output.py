"""The recipe's `output` block: directory, label and card of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sora_cli.recipe.types import Block


class OutputBlock(Block):
    """Directory, label and card of the run's results."""

    dir: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="output directory. Default: runs/<recipe>-<method>-s<seed>"
    )
    label: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="label of the run in tables (sora compare). Default: the options in which "
        "the runs differ",
    )
    derived: list[str] = Field(
        [],
        description="keys whose values follow from other runs, such as a budget taken from another "
        "run of the same seed; sora compare ignores them when it groups runs",
    )
    base_id: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = Field(
        None,
        description="Hub id of the base model if model.path is a local copy; the adapter and its "
        "card then name this id. Default: detected if the copy is in the Hub's cache",
    )
    license: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")] | None = Field(
        None,
        description="licence of the adapter for its card, by its name on the Hub, such as "
        "apache-2.0",
    )
