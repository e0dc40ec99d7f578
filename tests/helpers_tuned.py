"""Bases and fine-tuned models on the disk, made from tiny ones by changing some parameters."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch


@torch.no_grad()
def change(model: Any, pattern: str, *, rank: int | None = None, seed: int = 1) -> Any:
    """Copy a model and add random numbers to all parameters whose name a pattern finds.

    Args:
        rank: of what is added to matrices; None: full.
    """
    tuned = copy.deepcopy(model)
    g = torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if not re.search(pattern, name):
            continue
        delta = torch.randn(parameter.shape, generator=g) * 0.05
        if rank is not None and parameter.ndim == 2:
            u, s, vt = torch.linalg.svd(delta, full_matrices=False)
            delta = (u[:, :rank] * s[:rank]) @ vt[:rank]
        parameter.add_(delta)
    return tuned


def save_pair(base: Any, tuned: Any, folder: Path, **options: Any) -> tuple[str, str]:
    """Save both; return their directories, the fine-tuned model's first."""
    base.save_pretrained(folder / "base")
    tuned.save_pretrained(folder / "tuned", **options)
    return str(folder / "tuned"), str(folder / "base")


def loaded(kind: Any, directory: Path) -> Any:
    """Load a model of the same class as another."""
    return type(kind).from_pretrained(directory).eval()
