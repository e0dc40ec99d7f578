"""The recipe's `auto` block: the accepted drop, and the cost of the search for a size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sora_cli.recipe.types import Block, Count, Seed

Serve = Literal["vllm", "llama.cpp"]


class AutoBlock(Block):
    """A search for the smallest adapter whose drop stays within a promise (`sora auto`).

    The run trains at full rank. Before its end, the adapter is cut to some smaller sizes, and each
    size is trained for the remaining steps. Tests on rows outside the training then choose a size.
    """

    max_drop: float | str = Field(
        description="how much worse than at full rank the main metric may be: in its own unit "
        "(0.005), in points of a hundred (0.5pt), or smallest: the smallest loss that the test "
        "rows can be expected to certify, rounded up to half a point"
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="1 - the probability that the loss is larger, at most"
    )
    serve: Serve | None = Field(
        None,
        description="what serves the adapter: vllm pays for the largest rank in steps of 8, 16, "
        "32 ..., llama.cpp for every layer at the largest rank; unset: parameters count",
    )
    r_max: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="full rank, that of every layer until the cut; unset: the rank that the "
        "recipe's method begins with",
    )
    sizes: int = Field(
        2, ge=1, le=3, description="sizes that are trained, at most; the fewer, the longer each"
    )
    cost: float = Field(
        0.3,
        gt=0,
        le=2,
        description="share of the full run's work that finding the size may take: two thirds for "
        "the steps after the cuts, one for scoring, which limits the rows",
    )
    probe: bool = Field(
        False,
        description="try a third of the learning rate, the rate and three times it, 5 % of the "
        "steps each, on training rows alone, and take the one with the smallest loss",
    )
    rows: Count | None = Field(
        None,
        description="rows of the training split that choose the size and are not trained on; "
        "unset: as many as the cost allows of those that data.max_train_rows leaves unused, or of "
        "a fifth of the split",
    )
    seed: Seed = Field(
        42, description="seed that takes these rows out, and parts them into screening and test"
    )
