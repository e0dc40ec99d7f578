"""Reward models: a number for an answer, learned from pairs of a better and a worse one.

The model reads both answers; the probability that the chosen one is better is the logistic function
of the difference of their numbers (Bradley and Terry 1952, Biometrika 39, 324-345; Ouyang et al.
2022, arXiv 2203.02155, equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.recipe.reward_options import ANSWER, RewardOptions
from sora_cli.tasks.answer_rows import INPUTS
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.pair_rows import PairRows
from sora_cli.tasks.pairs import SIDES
from sora_cli.tasks.stand_ins import check_finite
from sora_cli.tasks.texts import require_column

REWARD = "reward"
"""Column of the answers to rows of single answers."""
_IDS = "input_ids"


class Answers:
    """The collator: pads the answers of rows to (rows, answers, tokens)."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return ids and attention mask; a row has a pair of answers, or a single one."""
        ids = [torch.tensor(one) for row in rows for one in row[_IDS]]
        masks = [torch.ones(len(one), dtype=torch.long) for one in ids]
        padded = pad_sequence(ids, True, float(self.pad)), pad_sequence(masks, True)
        return {
            name: tensor.view(len(rows), -1, tensor.shape[-1])
            for name, tensor in zip((_IDS, "attention_mask"), padded, strict=True)
        }


class Reward(PairRows):
    """A model with one number as its head, at the last token of an answer."""

    options: RewardOptions
    _single = False
    """True if rows have one answer each, which gets a reward."""

    @classmethod
    def is_for(cls, config: Any) -> bool:
        del config  # such a model looks like one of sequence-regression
        return False

    @property
    def answered_by(self) -> Sequence[str]:
        return (REWARD,) if self._single else self.options.ANSWERED_BY

    def bind(self, train: Dataset) -> None:
        super().bind(train)
        if self._single:
            sides = [self._columns[side] for side in SIDES]
            others = [name for name in self.input_columns if name not in sides]
            self.input_columns = (*others, self.part_column(train.column_names, ANSWER))

    def stand_in(self, rows: Dataset) -> Dataset:
        """Return the rows; a single answer stands in for both sides."""
        columns = rows.column_names
        sides = {side: self.part_column(columns, side) for side in SIDES}
        self._single = not set(sides.values()) & set(columns)
        if not self._single:
            return rows
        answer = self.part_column(columns, ANSWER)
        require_column(answer, columns, key=f"data.columns.{ANSWER}",
                       hint=f"name the answers: data.columns.{ANSWER}=COLUMN")  # fmt: skip
        for column in sides.values():
            rows = rows.add_column(column, rows[answer][:], feature=rows.features[answer])
        return rows

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        made = super().encode(rows, processor, training=training)
        if not self._single:
            return made
        alone = {name: [both[:1] for both in made.dataset[name][:]] for name in INPUTS}
        return replace(made, dataset=Dataset.from_dict(alone), notes={})

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        self._check_pairs()
        return super().input_keys(rows, answers=answers)

    def _check_pairs(self) -> None:
        """Refuse single answers where two models are compared."""
        if self._single:
            raise RowError(
                "models are compared by the answer that they prefer",
                hint="give pairs of answers: data.columns.chosen=COLUMN, rejected=COLUMN",
                key="data.columns.chosen",
            )

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        super().adapt_model(model, processor)
        if processor.bos_token_id is None and processor.cls_token_id is not None:
            config: Any = model.config
            raise SoraError(
                f"a {config.model_type} model reads a text between tokens of its own, and a reward "
                "is read at the last token of an answer",
                hint="name a decoder: model.path=MODEL; or score texts: "
                "task.name=sequence-regression",
                key="model.path",
            )

    def collator(self, processor: Any) -> Any:
        return Answers(processor.pad_token_id)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return len(batch[_IDS])

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: tensor.flatten(0, 1) for name, tensor in batch.items()}

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.inputs_of(batch)

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean over the pairs."""
        rewards = outputs["logits"].view(len(batch[_IDS]), 2)
        exact = torch.promote_types(rewards.dtype, torch.float32)
        return self._losses(rewards.to(exact)).mean()

    def _losses(self, rewards: Tensor) -> Tensor:
        """Return the loss of each pair, (n,).

        Args:
            rewards: (n, 2) of the chosen and the rejected answer.
        """
        chosen, rejected = rewards.unbind(1)
        return -logsigmoid(chosen - rejected) + self.options.centring * (chosen + rejected) ** 2

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the reward of each answer, (rows, answers)."""
        kept: Tensor = outputs["logits"].view(len(batch[_IDS]), -1)
        return kept

    def constant_loss(self, rows: Encoded) -> float | None:
        """Return the loss of one number for every answer: 0 is best."""
        del rows
        return math.log(2)

    def loss(self, predictions: Predictions) -> float:
        return float(self._losses(torch.from_numpy(self._rewards(predictions))).mean())

    def _by_row(self, predictions: Predictions) -> dict[str, np.ndarray]:
        rewards = self._rewards(predictions)
        return {
            "rewards/accuracies": self._prefers_chosen(predictions).astype(float),
            "rewards/margins": rewards[:, 0] - rewards[:, 1],
            **{f"rewards/{side}": rewards[:, i] for i, side in enumerate(SIDES)},
            "loss": self._losses(torch.from_numpy(rewards)).numpy(),
        }

    def _rewards(self, predictions: Predictions) -> np.ndarray:
        return np.asarray(predictions.outputs, dtype=np.float64)

    def _magnitudes(self, predictions: Predictions) -> np.ndarray:
        return np.asarray(np.abs(self._rewards(predictions)))

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        if not self._single:
            return super().answer_columns(predictions)
        check_finite(predictions.outputs)
        return [*self._rewards(predictions).T.tolist()]

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        self._check_pairs()
        return super().compared_answers(predictions)
