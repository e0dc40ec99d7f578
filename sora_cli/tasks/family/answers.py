"""The answers of a model to rows, for `predict`, and for the comparison of two models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.family.bound import Bound
from sora_cli.tasks.questions import Questions


class FamilyAnswers(Bound):
    """The answers of a family, from a model's outputs on rows."""

    @property
    def answered_by(self) -> Sequence[str]:
        """Names of the columns of answers, after `stand_in` has seen the rows."""
        return self.options.ANSWERED_BY

    def answers(self, predictions: Predictions) -> np.ndarray | None:
        """Return each row's predicted class number or value, (rows,); None for other families."""
        return None

    @abstractmethod
    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        """Return the model's answers: one column per name in `answered_by`, (rows,) each.

        Outputs that are not finite are a `RowError`.
        """

    def questions(self, rows: Dataset, order: np.random.Generator) -> Questions | None:
        """Return raw rows as a person sees them to label them.

        Args:
            order: draws the order of what is shown, where that could tell the answer.

        Returns:
            None: the labels of this family are no short list.
        """
        return None

    def compared_answers(self, predictions: Predictions) -> Sequence[Any]:
        """Return the answer to each raw row in the form in which two models are compared.

        Scores and probabilities are left out: they differ where the answers are the same.
        """
        return self.answer_columns(predictions)[0]

    def probabilities(self, predictions: Predictions) -> np.ndarray | None:
        """Return the probability of each class, (rows, classes); None if there are no classes."""
        return None

    @abstractmethod
    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return one mapping per scored raw row, for `sora eval --predictions`."""
