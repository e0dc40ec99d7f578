"""Private names of transformers that tasks use."""

from __future__ import annotations

from typing import Any


def parts_by_lengths(config: Any) -> bool:
    """Return True if a model's attention takes the lengths of packed rows instead of a mask."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    return MASKS.get(config._attn_implementation) is MASKS["flash_attention_2"]
