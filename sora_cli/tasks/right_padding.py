"""Batches padded at the right, whatever side a tokenizer prefers: labels are places of tokens.

Decoders lose nothing by it: nothing before the padding looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def pad_inputs(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The tokenizer's own columns of rows, as (rows, tokens of the longest)."""
    from transformers.data.data_collator import pad_without_fast_tokenizer_warning

    names = [name for name in tokenizer.model_input_names if name in rows[0]]
    inputs = [{name: row[name] for name in names} for row in rows]
    options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    return dict(pad_without_fast_tokenizer_warning(tokenizer, inputs, **options))


def pad_column(rows: Sequence[Mapping[str, Any]], name: str, value: int) -> Tensor:
    """(rows, tokens of the longest) of a column of lists of whole numbers."""
    lists = [torch.tensor(row[name]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=value)
