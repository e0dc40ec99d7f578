"""A decoder whose answers are measured against a reference model, by their log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from sora_cli.tasks.base import Task
from sora_cli.tasks.decoders import check_causal
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.learned import LearnedHead

REFERENCE = "reference"
"""Column of training rows, and name in a batch: log-probabilities by the reference model."""


class Referenced(Task):
    """The head of a family whose kept outputs are `token_sums` of each text, (rows, texts, 3)."""

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        super().adapt_model(model, processor)
        check_causal(model, str(model.config.name_or_path))  # type: ignore[union-attr]
        self.learned = LearnedHead.of(model)
        self.learned.reduced = False

    def measured(self, outputs: np.ndarray) -> np.ndarray:
        """Return the log-probability of each text, (rows, texts)."""
        return np.ascontiguousarray(-outputs[..., 0])

    def with_reference(self, rows: Encoded, reference: np.ndarray) -> Encoded:
        dataset = rows.dataset.remove_columns(REFERENCE)
        return replace(rows, dataset=dataset.add_column(REFERENCE, list(reference)))
