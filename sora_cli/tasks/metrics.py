"""Metrics of one number per row: GLUE's are computed here, others with `evaluate`.

Imports are local to the metrics: a run that reports accuracy imports neither sklearn, scipy nor
`evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_cli.core.errors import SoraError, first_line
from sora_cli.recipe.metric_names import built_in, check_metric, near

Metric = Callable[[np.ndarray, np.ndarray], dict[str, float]]
"""Predictions and labels, one number per row -> scores by name."""


def _accuracy(p: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(p == y))


def _f1(p: np.ndarray, y: np.ndarray) -> float:
    """Return F1 of class 1 for two classes, macro F1 for more."""
    from sklearn.metrics import f1_score

    binary = max(int(np.max(p)), int(np.max(y))) <= 1
    return float(f1_score(y, p, average="binary" if binary else "macro", zero_division=0))


def _matthews(p: np.ndarray, y: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(y, p))


def _pearson(p: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation; 0 if one side is constant, where it is undefined."""
    from scipy.stats import pearsonr

    return 0.0 if np.ptp(p) == 0 or np.ptp(y) == 0 else float(pearsonr(p, y).statistic)


def _spearman(p: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return 0.0 if np.ptp(p) == 0 or np.ptp(y) == 0 else float(spearmanr(p, y).statistic)


def _pearson_spearman(p: np.ndarray, y: np.ndarray) -> float:
    return (_pearson(p, y) + _spearman(p, y)) / 2


_OFFLINE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
}
_REGRESSION = ("pearson", "spearman", "pearson_spearman")


def load_metric(name: str) -> Metric:
    """Return a metric: a built-in one, or the Hub's metric of this name."""
    check_metric(name, tuple(_OFFLINE), from_hub=True)
    return _offline(name) if name in _OFFLINE else _from_the_hub(name)


def _offline(name: str) -> Metric:
    """Return a built-in metric."""
    dtype = np.float64 if name in _REGRESSION else np.int64
    score = _OFFLINE[name]

    def compute(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        p, y = np.asarray(predictions, dtype), np.asarray(labels, dtype)
        if p.shape != y.shape:
            raise ValueError(f"{name} of predictions {p.shape} and labels {y.shape}")
        return {name: score(p, y)}

    return compute


def _from_the_hub(name: str) -> Metric:
    """Return a metric of `evaluate`; it may give several values."""
    import evaluate

    try:
        metric = evaluate.load(name)
    except Exception as error:  # evaluate raises many types for one cause
        raise SoraError(
            f"no metric '{name}': it is not built in, and the Hub gave none",
            where=built_in(tuple(_OFFLINE)),
            hint=near(name, tuple(_OFFLINE)) or f"{type(error).__name__}: {first_line(error, 120)}",
            key="task.metrics",
        ) from error

    def compute(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        result = metric.compute(predictions=predictions, references=labels)
        return {key: float(value) for key, value in result.items()}

    return compute


class Scorer:
    """The metrics of one number per row that a recipe names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._metrics = {name: load_metric(name) for name in self.names}

    def __call__(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return scores by name; a Hub metric with several values gives all of them.

        Any prediction that is not finite makes every score NaN, so that it never wins a comparison.
        """
        if not np.isfinite(predictions).all():
            return {name: float("nan") for name in self.names}
        scores: dict[str, float] = {}
        for metric in self._metrics.values():
            scores.update(metric(predictions, labels))
        return scores


def number_parts(metric: str, predictions: np.ndarray, labels: np.ndarray) -> tuple[Any, ...]:
    """Return the formula and the parts of a metric of one number per row (`Task.row_parts`)."""
    if not np.isfinite(predictions).all():
        return metric, np.full(len(labels), np.nan), labels
    classes = metric in _OFFLINE and metric not in _REGRESSION
    dtype = np.int64 if classes else np.float64
    given, wanted = predictions.astype(dtype), np.asarray(labels).astype(dtype)
    return ("right", given == wanted) if metric == "accuracy" else (metric, given, wanted)
