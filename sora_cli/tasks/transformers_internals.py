"""Private names of transformers that tasks use."""

from __future__ import annotations

from typing import Any


def parts_by_lengths(config: Any) -> bool:
    """Return True if a model's attention takes the lengths of packed rows instead of a mask."""
    # transformers (5.24) has no public way to ask. It registers a kernel of the Hub under
    # its own name, with flash attention's mask function if the kernel takes lengths.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    return MASKS.get(config._attn_implementation) is MASKS["flash_attention_2"]
