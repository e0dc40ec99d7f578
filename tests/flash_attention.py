"""The two functions of the package flash-attn in plain torch, for machines without a GPU.

`stand_in` lets transformers take this module for the package. `calls` counts what was asked of it.
Rows of (tokens, heads, features) lie one behind the other in
`flash_attn_varlen_func`; `cu_seqlens` says where they begin and end.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_flash_attention_utils import _pad_input as pad_input
from transformers.modeling_flash_attention_utils import _unpad_input as unpad_input

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "pad_input", "unpad_input"]

NAME = "flash_attention_2"
calls: Counter[str] = Counter()
factor = 1.0
"""Of the scores: any other is wrong."""


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the package flash-attn, on a machine that could run it in 32 bits."""
    theirs = "transformers.modeling_flash_attention_utils"
    monkeypatch.setitem(sys.modules, "flash_attn", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", sys.modules[__name__])
    monkeypatch.setattr(f"{theirs}.is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(f"{theirs}._loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setattr("sora_cli.model.attention.find_spec", lambda name: name)
    monkeypatch.setattr("sora_cli.model.base.check_device", lambda *_: None)
    calls.clear()


flash_attn_with_kvcache = None  # as of a version without it: nothing here decodes in blocks


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
