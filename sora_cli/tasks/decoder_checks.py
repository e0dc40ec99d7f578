"""What is tried out on a decoder before it is trained: that it reads in one direction only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sora_cli.errors import SoraError

_FIRST, _SECOND = 3, 5  # tokens of two short rows
_EXACT, _HALF = 1e-4, 0.03  # differences allowed, of the largest logit: in 32 bits, and in 16


@torch.no_grad()
def check_causal(model: Any, name: str) -> None:
    """Later tokens must not change what is predicted before them: else a loss says nothing.

    Raises:
        SoraError: they do, as in models that were made to fill gaps.
    """
    ids = _ids(model, _FIRST + _SECOND)
    changed = ids.clone()
    changed[:, _FIRST:] = ids[:, _FIRST:].flip(1)
    before, after = (_logits(model, x)[:, :_FIRST] for x in (ids, changed))
    if not _same(model, before, after):
        raise SoraError(
            f"model '{name}' reads text in both directions: it is no causal language model",
            hint="name a decoder (GPT-2, Llama, ...) as model.path, or another task.name",
            key="model.path",
        )


@torch.no_grad()
def check_packing(model: Any) -> None:
    """A packed row must give what it gives alone.

    Raises:
        SoraError: it does not.
    """
    ids = _ids(model, _FIRST + _SECOND)
    positions = torch.cat([torch.arange(_FIRST), torch.arange(_SECOND)])[None].to(ids.device)
    together = _logits(model, ids, position_ids=positions)[:, _FIRST:]
    if not _same(model, together, _logits(model, ids[:, _FIRST:])):
        raise SoraError(
            f"packing: a {model.config.model_type} model mixes the rows that are packed together",
            hint="task.packing=false",
            key="task.packing",
        )


def _ids(model: Any, n: int) -> Tensor:
    words: int = model.get_input_embeddings().num_embeddings
    steps = torch.arange(1, n + 1, device=model.device)
    return (steps * (words // (n + 2)))[None]  # (1, n), all different


def _logits(model: Any, ids: Tensor, **more: Tensor) -> Tensor:
    training = model.training
    model.eval()
    try:
        logits: Tensor = model(input_ids=ids, use_cache=False, **more).logits.float()
    finally:
        model.train(training)
    return logits


def _same(model: Any, a: Tensor, b: Tensor) -> bool:
    tolerance = _EXACT if torch.finfo(model.dtype).bits >= 32 else _HALF
    return bool((a - b).abs().max() <= tolerance * b.abs().max())
