"""The rows of the table: overrides of `sora train`, and the models to measure them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.shapes import TINY, Shape

_CHECKPOINTING = "training.gradient_checkpointing=true"
_OFFLOAD = "training.activation_offload=true"
_FULL = ("model.dtype=float32", "training.precision=fp32")
_QUANTISED = "model.quantise=4bit"
_PACKED = "task.packing=true"
_FLASH = "model.attention=flash_attention_2"
_SMALL, _MIDDLE, _LARGE = "135M", "1.2B", "8B"
_ALL = (_SMALL, _MIDDLE, _LARGE)


@dataclass(frozen=True)
class Row:
    """A combination of a recipe's options.

    Attributes:
        words: overrides of the recipe written by `shapes.write` (LoRA on a bf16 model under bf16
            autocast).
        models: names of the shapes to measure.
        short: True for data rows of many lengths, False for long rows.
    """

    title: str
    words: tuple[str, ...] = ()
    models: Sequence[str] = _ALL
    short: bool = False


ROWS = (
    Row("bf16, checkpointing", (_CHECKPOINTING,)),
    Row("bf16"),
    Row("4-bit base, checkpointing", (_QUANTISED, _CHECKPOINTING)),
    Row("4-bit base", (_QUANTISED,), (_SMALL, _MIDDLE)),
    Row("SoRA", ("method.name=sora", "method.r_max=16", "method.threshold=1e-5")),
    Row("compiled blocks", ("training.compile=true",)),
    Row("Liger", ("training.kernels=liger",)),
    Row("activations offloaded", (_OFFLOAD,), (_SMALL, _MIDDLE)),
    Row("activations offloaded, checkpointing", (_OFFLOAD, _CHECKPOINTING), (_MIDDLE, _LARGE)),
    Row("bf16 autocast of an fp32 model", ("model.dtype=float32",), (_SMALL, _MIDDLE)),
    Row("short rows, padded", (), (_SMALL, _MIDDLE), short=True),
    Row("short rows, packed", (_PACKED,), (_SMALL, _MIDDLE), short=True),
    Row("flash attention", (_FLASH,), (_SMALL, _MIDDLE)),
    Row("flash attention, packed", (_FLASH, _PACKED), (_SMALL, _MIDDLE), short=True),
    Row("8-bit AdamW", ("training.optimizer=adamw_8bit",), (_SMALL, _MIDDLE)),
    Row("paged 8-bit AdamW", ("training.optimizer=paged_adamw_8bit",), (_SMALL, _MIDDLE)),
    Row("unfused AdamW", ("training.optimizer=adamw_unfused",), (_SMALL,)),
    Row("fp32", _FULL, (_SMALL,)),
    Row("eager attention", ("model.attention=eager",), (_SMALL,)),
    Row("flex attention", ("model.attention=flex_attention",), (_SMALL,)),
)


def rows_for(shape: Shape, titles: Sequence[str]) -> list[Row]:
    """Return the rows of a model, the most important first; the tiny model has all rows.

    Args:
        titles: of the rows to return; empty: all.
    """
    mine = (row for row in ROWS if shape is TINY or shape.name in row.models)
    return [row for row in mine if not titles or row.title in titles]
