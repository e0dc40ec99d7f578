"""The scores of a model on a split: loss, metrics, and the main metric by row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import numpy as np

from sora_cli.tasks.encoded import Encoded, Found, Predictions
from sora_cli.tasks.family.bound import Bound
from sora_cli.tasks.row_scores import RowScores, row_scores

if TYPE_CHECKING:
    from sora_cli.tasks.corpus import Reader


class FamilyScores(Bound):
    """The scores of a family, from a model's outputs on rows."""

    @abstractmethod
    def loss(self, predictions: Predictions) -> float:
        """Return the exact mean loss over a whole split, from the model's outputs."""

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the recipe's metrics on a split; metrics of texts only if texts were generated."""

    @final
    def scores(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics of a split and its exact loss."""
        return {**self.metrics(predictions), "loss": self.loss(predictions)}

    @final
    def row_scores(self, predictions: Predictions) -> RowScores:
        """Return the main metric (`best`) by row, so that it can be computed on any subset of rows.

        `row_scores(p).value` equals `metrics(p)[best]`. There is one row per raw row, in order. A
        metric that compares all rows with each other has no scores by row and raises `SoraError`.
        """
        scores = self._by_formula(predictions)
        if np.isfinite(scores.parts).all():
            return scores
        # a family may return another formula for a broken model, which no other model's fits
        found, outputs = predictions.found, _finite(predictions.outputs)
        found = found and replace(found, scores=_finite(found.scores))
        sound = self._by_formula(replace(predictions, outputs=outputs, found=found))
        return replace(sound, parts=np.full_like(sound.parts, np.nan))

    def _by_formula(self, predictions: Predictions) -> RowScores:
        formula, *parts = self.row_parts(predictions)
        better, alone = self.options.greater_is_better, self.rows_alone
        return row_scores(self.best, formula, *parts, greater_is_better=better, rows_alone=alone)

    @property
    def rows_alone(self) -> bool:
        """True if the score of a row does not depend on the other rows."""
        return self.options.ROWS_ALONE or self.corpus is not None

    def adapted_rows(self, rows: Encoded) -> int | None:
        """Return how many of the rows, the first ones, the adapter has a part in; None: all."""
        return None

    def settled(self, rows: Encoded, outputs: np.ndarray, reader: Reader) -> np.ndarray:
        """Append the base model's outputs on the other rows to the outputs on `adapted_rows`."""
        return outputs

    def found(self, rows: Encoded, outputs: np.ndarray, reader: Reader) -> Found | None:
        """Return the documents of the corpus that rows find; None without a corpus.

        Args:
            outputs: the model's on these rows.
            reader: the model, which reads the corpus.
        """
        return None

    def blank_scores(self, rows: Encoded) -> RowScores | None:
        """Return the scores of a model that is always wrong, where a real one would take long.

        They show the kind of the rows' scores. None: a few rows are scored instead.
        """
        return None

    @abstractmethod
    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        """Return a formula's name (see `row_scores.FORMULAS`) and its parts, (rows,) each.

        Parts are NaN if the metric is NaN.
        """

    def needs_texts(self, metrics: Sequence[str]) -> bool:
        """Return True if any of these metrics needs generated texts."""
        return any(name in self.options.TEXT_METRICS for name in metrics)

    def constant_loss(self, rows: Encoded) -> float | None:
        """Return the loss of the best constant answer to training rows; None: there is none."""
        return None


def _finite(outputs: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(outputs), outputs, 0)
