"""Packed rows that attention without a mask must not mix; trials are in `test_causal_lm`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sora_cli.tasks.decoders import keep_packed_apart
from sora_cli.tasks.dialogues import Padding, packed
from sora_cli.tasks.learned import LEARNED, LearnedHead
from tests import flash_attention
from tests.helpers_models import tiny_llama

LENGTHS = (5, 3, 7, 4, 6, 2)


def _rows() -> list[dict[str, Any]]:
    """Rows of tokens, of which the first is not learned."""
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [(7 * number + 3 * place) % 23 + 1 for place in range(length)]
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    return rows


def _loss_and_gradient(model: Any, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(parts).double()


@pytest.mark.parametrize("learned_only", [True, False])
@pytest.mark.parametrize("in_batch", [1, 4])
def test_packed_rows_are_apart_without_a_mask(
    learned_only: bool, in_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By flash attention, which takes lengths, they give what the rows give alone."""
    flash_attention.stand_in(monkeypatch)
    model, rows = tiny_llama(), _rows()
    keep_packed_apart(model)
    assert not learned_only or LearnedHead.of(model).alone
    size = 12 if in_batch > 1 else sum(LENGTHS)
    together = Padding(0)(packed(rows, size))
    assert (len(together["input_ids"]) > 1) == (in_batch > 1)
    alone = Padding(0)(rows)
    if not learned_only:
        together, alone = ({k: v for k, v in b.items() if k != LEARNED} for b in (together, alone))
    loss, gradient = _loss_and_gradient(model, alone)
    usual, _ = _loss_and_gradient(model, together)
    model.set_attn_implementation(flash_attention.NAME)
    found, ours = _loss_and_gradient(model, together)
    assert flash_attention.calls["lengths"] > 0
    assert flash_attention.calls["rows"] == 0
    assert found == pytest.approx(loss, rel=1e-5)
    assert usual == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(ours, gradient, rtol=1e-3, atol=1e-6)


def test_rows_that_are_not_packed_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions beside a mask are those of padded rows, which are written on."""
    flash_attention.stand_in(monkeypatch)
    model = tiny_llama()
    keep_packed_apart(model)
    model.set_attn_implementation(flash_attention.NAME)
    ids = torch.arange(1, 7).reshape(2, 3)
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids),
                position_ids=torch.arange(3).repeat(2, 1))  # fmt: skip
    assert out.logits.shape[:2] == (2, 3)
