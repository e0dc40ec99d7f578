"""The recipe's `auto` block: the accepted drop, and the cost of the search for a size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sora_cli.recipe.types import Block, Count, Seed

Serve = Literal["vllm", "llama.cpp"]
Basis = Literal["labels", "answers", "asked"]


class AutoBlock(Block):
    """A search for the smallest adapter whose drop stays within a promise (`sora auto`).

    The run trains at full rank. Before its end, the adapter is cut to some smaller sizes, and each
    size is trained for the remaining steps. Tests on rows outside the training then choose a size.
    """

    max_drop: float | str | None = Field(
        None,
        description="the promise: the largest accepted drop of the main metric from full rank, in "
        "the metric's own unit (0.005), in points (0.5pt; a point is 0.01 of a metric that ends at "
        "1), or smallest: the smallest drop that the test rows can be expected to certify, rounded "
        "up to half a point",
    )
    max_differ: float | str | None = Field(
        None,
        description="in place of max_drop: the largest share of rows that may be answered "
        "otherwise than at full rank, such as 1%; it needs `unlabelled` and no labels",
    )
    unlabelled: str | None = Field(
        None,
        description="file of rows on which answers are compared (csv, tsv, json, jsonl, parquet); "
        "labels in it are ignored, and training rows in it are left out; with max_drop: see basis",
    )
    basis: Basis | None = Field(
        None,
        description="with max_drop and `unlabelled`, the rows that test the promise: labels: rows "
        "held out of the training split; answers: the unlabelled rows, since the loss is at most "
        "the share of them that is answered differently; unset: planned before training, whichever "
        "certifies more; asked: the unlabelled rows, with the labels of `ask`, which sets it",
    )
    ask: str | None = Field(
        None,
        description="with max_drop and `unlabelled`: the table (csv) to write, with the rows on "
        "which the sizes answer otherwise than full rank; a person fills in their labels, and the "
        "same command reads them and tests the promise",
    )
    labels: Count | None = Field(
        None,
        description="with `ask`: the largest number of rows to label. Default: 60",
    )
    ask_all: bool = Field(
        False,
        description="with `ask`: ask for the labels of all sizes in one round, in place of a "
        "smaller size's only once the larger one is certified",
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        description="for answers that are numbers: the largest distance of two that count as the "
        "same answer",
    )
    next_tokens: bool = Field(
        False,
        description="with max_differ, for models that write texts: compare the likeliest next "
        "token at each place of the given texts that the loss counts, instead of the texts that "
        "the models write; a row differs if any of its tokens does",
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="confidence of the certificate, such as 0.95: 1 - the largest probability of a "
        "broken promise",
    )
    serve: Serve | None = Field(
        None,
        description="server of the adapter, whose cost is minimised. vllm pays for the largest "
        "rank, rounded up to a value of its option; llama.cpp pays for every layer at the largest "
        "rank. Default: the number of parameters is minimised",
    )
    r_max: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="full rank: the rank of every layer before the cut. Default: the starting rank "
        "of the recipe's method",
    )
    sizes: int = Field(
        2,
        ge=1,
        le=3,
        description="largest number of sizes to train; with fewer sizes, each trains for more "
        "steps",
    )
    cost: float = Field(
        0.3,
        gt=0,
        le=2,
        description="cost of finding the size, as a share of the full run's work: two thirds for "
        "the steps after the cuts, one third for scoring, which limits the number of rows",
    )
    rows: Count | None = Field(
        None,
        description="number of rows of the training split that choose the size and are not trained "
        "on. Default: as many as the cost allows, out of the rows that data.max_train_rows leaves "
        "unused or out of a fifth of the split; with max_differ, all rows without labels",
    )
    seed: Seed = Field(
        42, description="seed that draws these rows and divides them into screening and test rows"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_probe(cls, values: Any) -> Any:
        """Drop `probe: false`, which reports of earlier versions hold."""
        if isinstance(values, Mapping) and values.get("probe") is False:
            return {key: value for key, value in values.items() if key != "probe"}
        return values
