"""Texts of one step that are read together."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sora_cli.tasks import embedding_batch
from sora_cli.tasks.embedding_batch import (
    DOCUMENTS,
    QUERIES,
    TextBatches,
    in_order,
    inputs_of,
    of_like_length,
)
from tests.helpers_runs import tiny_tokenizer


@pytest.mark.parametrize("worth", [0, 5, 64, 10_000])
def test_a_part_saves_what_a_pass_costs(monkeypatch: pytest.MonkeyPatch, worth: int) -> None:
    monkeypatch.setattr(embedding_batch, "PASS", worth)
    lengths = np.random.default_rng(0).geometric(1 / 20, size=64)
    parts = list(of_like_length(lengths, np.argsort(-lengths, kind="stable")))
    assert sorted(np.concatenate(parts)) == list(range(64))
    cost = [len(part) * lengths[part].max() for part in parts]
    for first, second in pairwise(parts):
        assert lengths[first].min() > lengths[second].max()
    apart = 64 * lengths.max() - sum(cost)
    assert apart > worth * (len(parts) - 1) or len(parts) == 1
    assert (len(parts) == 1) == (worth == 10_000)
    if not worth:
        assert sum(cost) == lengths.sum()


@pytest.mark.parametrize(("device", "processes"), [("cpu", 1), ("cpu", 2), ("cuda", 1)])
def test_parts_come_back_in_the_order_of_the_rows(
    monkeypatch: pytest.MonkeyPatch, device: str, processes: int
) -> None:
    monkeypatch.setattr(embedding_batch, "PASS", 3)
    monkeypatch.setattr(embedding_batch, "device_type", lambda: device)
    state = SimpleNamespace(num_processes=processes)
    monkeypatch.setattr(embedding_batch, "process_state", lambda: state)
    texts = [[5] * 2, [6] * 9, [7], [8] * 9, [9] * 3]
    rows = [{"input_ids": [own, [own[0]]], "keys": [own[0], own[0]]} for own in texts]
    batch = TextBatches(tiny_tokenizer())(rows)
    parts = inputs_of(batch, QUERIES)
    widths = [part["input_ids"].shape[1] for part in parts]
    assert widths == ([9, 3] if (device, processes) == ("cpu", 1) else [9])
    vectors = in_order([part["input_ids"][:, :1] for part in parts], batch, QUERIES)
    assert vectors[:, 0].tolist() == [5, 6, 7, 8, 9]
    assert len(inputs_of(batch, DOCUMENTS)) == 1
    assert torch.equal(batch["keys"][:, 0], vectors[:, 0])
