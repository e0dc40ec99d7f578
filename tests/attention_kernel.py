"""A kernel as the Hub has them, with flash attention's two functions, of plain torch.

`stand_in` lets transformers take it for what the package kernels would fetch. `calls` counts what
was asked of it. Rows of (tokens, heads, features) lie one behind the other in
`flash_attn_varlen_func`; `cu_seqlens` says where they begin and end.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from sora_cli.model import hub_kernels

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"me/flash@{COMMIT}"
calls: Counter[str] = Counter()
factor = 1.0
"""Of the scores: any other is wrong."""


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Be what is fetched for any name; returns what was asked of the Hub, as it is asked."""
    asked: list[dict[str, Any]] = []

    def get_kernel(name: str, **options: Any) -> Any:
        asked.append({"name": name, **options})
        return sys.modules[__name__]

    hub = "transformers.integrations.hub_kernels"
    monkeypatch.setattr(f"{hub}.get_kernel", get_kernel)
    monkeypatch.setattr(f"{hub}.is_kernels_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "find_spec", lambda name: name)
    monkeypatch.setattr("transformers.modeling_flash_attention_utils._loaded_implementation", None)
    calls.clear()
    return asked


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention of (rows, tokens, heads, features), whose rows are of one length."""
    calls["rows"] += 1
    return _attend(q, k, v, dropout_p, softmax_scale, causal)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention of rows of several lengths."""
    calls["lengths"] += 1
    ours, theirs = (ends.diff().tolist() for ends in (cu_seqlens_q, cu_seqlens_k))
    assert (max(ours), max(theirs)) <= (max_seqlen_q, max_seqlen_k)
    parts = zip(q.split(ours), k.split(theirs), v.split(theirs), strict=True)
    options: Any = (dropout_p, softmax_scale, causal)
    return torch.cat([_attend(*(x[None] for x in part), *options)[0] for part in parts])


def _attend(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float | None, causal: bool
) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = factor * (q @ k.mT) * (scale or q.shape[-1] ** -0.5)
    if causal:
        tokens, seen = scores.shape[-2:]
        open_to = torch.ones(tokens, seen, dtype=torch.bool).tril(seen - tokens)
        scores = scores.masked_fill(~open_to, -torch.inf)
    weights = torch.dropout(scores.softmax(-1), dropout, train=dropout > 0)
    return (weights @ v).transpose(1, 2)
