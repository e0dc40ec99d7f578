"""Preferences: the model learns which of two answers to a prompt is the better one (DPO)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sora_cli.recipe.task_options import PreferenceOptions
from sora_cli.tasks.answer_rows import INPUTS
from sora_cli.tasks.dialogues import Padding
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.family.head import without
from sora_cli.tasks.language import token_sums
from sora_cli.tasks.learned import LEARNED, learned_labels, learned_logits
from sora_cli.tasks.pair_losses import pair_losses, rewards
from sora_cli.tasks.pair_rows import PairRows
from sora_cli.tasks.pairs import SIDES
from sora_cli.tasks.referenced import REFERENCE, Referenced


class Preference(Referenced, PairRows):
    """A model reads both answers to each prompt; its loss compares their log-probabilities."""

    options: PreferenceOptions

    @property
    def unknown(self) -> dict[str, Any]:
        """The log-probabilities by the reference model, which are computed once."""
        return {REFERENCE: [math.nan if self.options.needs_reference else 0.0] * 2}

    def collator(self, processor: Any) -> Any:
        return PairPadding(processor.pad_token_id)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return len(batch[REFERENCE])

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return _side_by_side(without(batch, REFERENCE))

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return _side_by_side(without(batch, "labels", REFERENCE))

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean over the pairs, from the losses (n,) of the learned tokens."""
        losses, labels = outputs["loss"], batch["labels"]
        rows = (batch[LEARNED] // labels.shape[-1]).to(losses.device)
        reference = batch[REFERENCE].to(losses)
        sums = losses.new_zeros(2, reference.numel())  # (log-probabilities, tokens) of each answer
        both = torch.stack([-losses, torch.ones_like(losses)])
        logps, tokens = sums.index_add(1, rows, both).view(2, *reference.shape)
        return pair_losses(self.options, logps, tokens, reference).mean()

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return (pairs, 2, 3): each answer's `token_sums` (loss, tokens, right tokens)."""
        labels, places = batch["labels"].flatten(0, 1), batch[LEARNED]
        logits = learned_logits(outputs["logits"], labels, places)
        sums = token_sums(logits, learned_labels(labels, places), places, labels.shape)
        return sums.view(-1, 2, 3)

    def constant_loss(self, rows: Encoded) -> float | None:
        """Return the loss of the reference model itself: both answers have the reward 0."""
        if not self.options.needs_reference or self.options.sft_weight:
            return None
        same = torch.zeros(1, 2)
        return float(pair_losses(self.options, same, same + 1, same))

    def loss(self, predictions: Predictions) -> float:
        return float(pair_losses(self.options, *_terms(predictions)).mean())

    def _by_row(self, predictions: Predictions) -> dict[str, np.ndarray]:
        reward, logps = self._rewards(predictions), -predictions.outputs[..., 0]
        return {
            "rewards/accuracies": self._prefers_chosen(predictions).astype(float),
            "rewards/margins": reward[:, 0] - reward[:, 1],
            **{f"rewards/{side}": reward[:, i] for i, side in enumerate(SIDES)},
            **{f"logps/{side}": logps[:, i] for i, side in enumerate(SIDES)},
            "loss": pair_losses(self.options, *_terms(predictions)).numpy(),
        }

    def _rewards(self, predictions: Predictions) -> np.ndarray:
        return rewards(self.options, *_terms(predictions)).numpy()

    def _magnitudes(self, predictions: Predictions) -> np.ndarray:
        # a reward is a difference: its error is that of the two log-probabilities
        logps, tokens, reference = _terms(predictions)
        return rewards(self.options, logps.abs(), tokens, -reference.abs()).numpy()


class PairPadding(Padding):
    """The collator of pairs: (pairs, 2, tokens), so that a micro-batch has its number of pairs."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        sides = [{name: row[name][i] for name in INPUTS} for row in rows for i in (0, 1)]
        batch = super().__call__(sides)
        reference = torch.tensor([row[REFERENCE] for row in rows], dtype=torch.float32)
        paired = {n: batch[n].unflatten(0, (-1, 2)) for n in (*INPUTS, "attention_mask")}
        return {**batch, **paired, REFERENCE: reference}


def _side_by_side(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with the answers of (pairs, 2, tokens) as rows, (2 pairs, tokens)."""
    return {
        name: value.flatten(0, 1) if isinstance(value, Tensor) and value.ndim == 3 else value
        for name, value in batch.items()
    }


def _terms(predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities, numbers of tokens, and the reference's log-probabilities."""
    sums = torch.from_numpy(predictions.outputs)
    reference = predictions.reference
    if reference is None:
        reference = np.zeros(predictions.outputs.shape[:2])
    return -sums[..., 0], sums[..., 1], torch.from_numpy(reference)
