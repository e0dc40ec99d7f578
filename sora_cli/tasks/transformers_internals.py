"""Private names of transformers that tasks use."""

from __future__ import annotations

from typing import Any


def parts_by_lengths(config: Any) -> bool:
    """Return True if a model's attention takes the lengths of packed rows instead of a mask."""
    # transformers (5.24) has no public way to ask
    return bool(config._attn_implementation == "flash_attention_2")


def commit_of(config: Any) -> str | None:
    """Return the Hub's commit that a model was loaded from; None for one on this disk."""
    commit: str | None = getattr(config, "_commit_hash", None)
    return commit
