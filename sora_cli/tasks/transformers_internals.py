"""Transformers' names that it promises to nobody, as far as tasks need them."""

from __future__ import annotations

from typing import Any


def parts_by_lengths(config: Any) -> bool:
    """Tell whether a model's attention is given the lengths of packed rows in place of a mask."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    return MASKS.get(config._attn_implementation) is MASKS["flash_attention_2"]
