"""Tests of a decoder before training: it must read from left to right and separate packed rows."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from sora_cli.core.errors import SoraError
from sora_cli.tasks.stand_ins import NOT_FINITE, OVERFLOW
from sora_cli.tasks.transformers_internals import parts_by_lengths

_EACH_TOKEN = ("input_ids", "position_ids", "labels")  # (rows, tokens)
_FIRST, _SECOND = 3, 5  # tokens of two short rows
_EXACT, _HALF = 1e-4, 0.03  # tolerance, as a share of the largest logit, in 32 and in 16 bits


@torch.no_grad()
def check_causal(model: Any, name: str) -> None:
    """Check that later tokens do not change earlier predictions.

    The loss of next-token prediction means nothing for a model that sees later tokens, such as a
    masked language model.
    """
    ids = _ids(model, _FIRST + _SECOND)
    changed = ids.clone()
    changed[:, _FIRST:] = ids[:, _FIRST:].flip(1)
    before, after = (_logits(model, x)[:, :_FIRST] for x in (ids, changed))
    if not bool(before.isfinite().all()):
        raise SoraError(NOT_FINITE, where="on a made-up text", hint=OVERFLOW)
    if not _nearly_equal(model, before, after):
        raise SoraError(
            f"model '{name}' reads text in both directions: it is no causal language model",
            hint="name a decoder (GPT-2, Llama, ...) as model.path, or another task.name",
            key="model.path",
        )


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Check that a row has the same outputs packed as alone."""
    ids = _ids(model, _FIRST + _SECOND)
    positions = torch.cat([torch.arange(_FIRST), torch.arange(_SECOND)])[None].to(ids.device)
    together = _logits(model, ids, position_ids=positions)[:, _FIRST:]
    if not _nearly_equal(model, together, _logits(model, ids[:, _FIRST:])):
        raise SoraError(
            f"packing: a {model.config.model_type} model mixes the rows that are packed together",
            hint="task.packing=false",
            key="task.packing",
        )


def keep_packed_apart(model: Any) -> None:
    """Flatten packed batches into one row for attention that needs it; changes the model in place.

    Flash attention gets no mask that separates rows. It starts a new row where positions start
    again, but only in a batch of one row: `_is_packed_sequence` of transformers silently mixes the
    rows of larger batches.
    """
    # until: transformers > 5.24
    lengths = _takes_lengths(model)

    def one_row(_: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
        positions = inputs.get("position_ids")
        packed = positions is not None and inputs.get("attention_mask") is None
        if not packed or not parts_by_lengths(model.config):
            return None
        flat = {name: inputs[name].reshape(1, -1) for name in _EACH_TOKEN if name in inputs}
        return args, {**inputs, **flat, **(_lengths(flat["position_ids"]) if lengths else {})}

    model.register_forward_pre_hook(one_row, with_kwargs=True)


def _takes_lengths(model: Any) -> bool:
    """Return True if `forward` accepts further keyword arguments, which reach the attention."""
    kinds = (p.kind for p in signature(model.forward).parameters.values())
    return Parameter.VAR_KEYWORD in kinds


def _lengths(positions: Tensor) -> dict[str, Any]:
    """Return the boundaries of rows in `positions` (1, n), as arguments of flash attention.

    Otherwise each layer computes them and waits for the GPU each time.
    """
    begins = (positions[0] == 0).nonzero().squeeze(1)
    ends = nn.functional.pad(begins, (0, 1), value=positions.numel()).int()
    longest = int(ends.diff().max())
    both = {"cu_seq_lens": ends, "max_length": longest}
    return {f"{name}_{side}": value for name, value in both.items() for side in "qk"}


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


def _nearly_equal(model: Any, a: Tensor, b: Tensor) -> bool:
    tolerance = _EXACT if torch.finfo(model.dtype).bits >= 32 else _HALF
    return bool((a - b).abs().max() <= tolerance * b.abs().max())
