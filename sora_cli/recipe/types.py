"""Base class of the recipe's blocks, and types of their values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _empty_if_unset(value: Any) -> Any:
    return "" if value is None else value


_TEXT = {"type": "string"}
Text = Annotated[
    str,
    BeforeValidator(_empty_if_unset),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "null"}]}),
]
"""Text that may be empty: `data.path=` clears it."""
Names = Annotated[
    list[str],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}),
]
"""One name or a list of them."""
SomeNames = Annotated[
    Names,
    Field(min_length=1),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
]
"""At least one name."""
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""Seed of the generators: NumPy's takes 32 bits, and stages of a path add to the seed."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A number of rows or steps."""


Attention = Annotated[
    Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None,
    Field(
        description="implementation of attention, by its name in transformers. flash_attention_2 "
        "needs a GPU, 16 bits and the package flash-attn; flex_attention needs a GPU. Default: the "
        "choice of transformers, sdpa if the model supports it"
    ),
]
"""The implementations of `sora_cli/model/attention.py`."""
Checkpointing = Annotated[
    bool,
    Field(
        description="keep only the inputs of the model's blocks and recompute the rest in the "
        "backward pass: less memory, about a third more time, the same gradients"
    ),
]
"""The switch of `sora_cli/model/gradient_checkpointing.py`."""
Compile = Annotated[
    bool,
    Field(
        description="compile the model's repeated blocks with torch.compile for training steps. "
        "For long runs on a GPU: compiling first takes minutes. Needs a C++ compiler (on a GPU: "
        "triton)"
    ),
]
"""The switch of `sora_cli/train/compiled.py`."""
Kernels = Annotated[
    Literal["liger"] | None,
    Field(
        description="liger: run norms, rotary embeddings and gated activations with Liger's Triton "
        "kernels in training steps, on a GPU, for the model families that Liger supports. "
        "Needs an extra: pip install 'sora-cli[liger]'"
    ),
]
"""The switch of `sora_cli/train/kernels.py`."""
Loss = Annotated[
    Literal["auto", "logits", "chunked"],
    Field(
        description="computation of a causal language model's loss. logits: the logits of all "
        "learned tokens at once. chunked: some tokens at a time, which takes less memory, and more "
        "time if the head is trained or adapted; the gradients are the same up to rounding. auto: "
        "chunked if the head is frozen and the model allows it"
    ),
]
"""Names of the loss computations in `sora_cli/tasks/learned.py`."""
Offload = Annotated[
    bool,
    Field(
        description="on a GPU, keep the tensors for the backward pass in main memory: less GPU "
        "memory, more time for the copies, the same gradients up to rounding"
    ),
]
"""The switch of `sora_cli/model/activation_offload.py`."""
Optimizer = Literal["adamw", "adamw_unfused", "adamw_8bit", "paged_adamw_8bit"]
"""Names of the optimisers in `sora_cli/train/optimizers.py`."""
Precision = Annotated[
    Literal["fp32", "bf16", "fp16", "auto"],
    Field(
        description="precision of autocast; auto: bf16 if the device has instructions for it, else "
        "fp32. auto is decided when the run starts, and kept when it is resumed"
    ),
]
"""Names of precisions, as `sora_cli/run/precision.py` settles them."""
Rate = Literal["auto"] | Annotated[float, Field(gt=0)]
"""A peak learning rate, or `auto`, as `sora_cli/run/rates` settles it."""


def _whole_from_one(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("below 1 it is a share of the run, from 1 on a whole number of steps")
    return int(value) if value >= 1 else value


Moment = Annotated[
    float,
    Field(gt=0, le=2**31 - 1),
    AfterValidator(_whole_from_one),
]
"""A number of optimiser steps; below 1: a share of the run's steps."""


class Block(BaseModel):
    """Base class of all blocks: unknown keys are errors, objects are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


RareClasses = Annotated[
    Literal["train"] | None,
    Field(
        description="train: where rows are held out of the training split, those whose class no "
        "other row there has stay in training, and are counted. Default: they are held out, which "
        "is an error unless the classes are named"
    ),
]
Corpus = Annotated[
    str | None,
    Field(
        description="of queries that find documents: csv, tsv, json, jsonl or parquet file with "
        "the columns id and text. Every query is scored among these documents, and rows name "
        "theirs by id or by text. Default: the documents of the split that is scored"
    ),
]
Repeats = Annotated[
    Literal["together", "separate"],
    Field(
        description="rows with the same input, where rows are held out. together: they all go to "
        "one part, and repeated inputs do not test a promise. separate: each row is dealt by "
        "itself, as in runs of versions without this key"
    ),
]
