"""The recipe's `auto` block: the loss that is tolerated, and what a run may spend on finding it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sora_cli.recipe.types import Block, Count, Seed

Serve = Literal["vllm", "llama.cpp"]
Basis = Literal["labels", "answers", "both"]


class AutoBlock(Block):
    """The smallest adapter within a tolerated loss, found in one run (`sora auto`).

    The run trains at full rank. Some sizes leave it by a cut before its end and are trained on for
    the steps that are left; tests on rows that are not trained on choose one of them.
    """

    max_drop: float | str | None = Field(
        None,
        description="how much worse than at full rank the main metric may be: in its own unit "
        "(0.005), in points of a hundred (0.5pt), or smallest: the smallest loss that the test "
        "rows can be expected to certify, rounded up to half a point",
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
        "the share of them that is answered differently; both: each at half the error; unset: "
        "planned before training, whichever certifies more",
    )
    tolerance: float | None = Field(
        None,
        ge=0,
        description="for answers that are numbers: the largest distance of two that count as the "
        "same answer",
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
        "a fifth of the split; with max_differ: of the unlabelled rows, unset: all of them",
    )
    cross_fit: bool | Literal["auto"] = Field(
        "auto",
        description="true: train full rank and sizes on each half of the rows, test them on the "
        "other half, and train the size found on all rows; it certifies smaller drops for about "
        "2.2 times the work of one run; auto: if rows held out are too few for max_drop and halves "
        "are enough",
    )
    refit: bool = Field(
        False,
        description="train the size found once more on all rows, test rows included, and write "
        "that adapter, which is not itself tested; the tested one stays in sizes/",
    )
    seed: Seed = Field(
        42, description="seed that takes these rows out, and parts them into screening and test"
    )
