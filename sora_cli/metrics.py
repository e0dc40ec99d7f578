"""Scores, through `evaluate`: the GLUE metrics offline, any other metric from the Hub by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_cli.errors import SoraError


def _accuracy(p: np.ndarray, y: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(y, p))


def _f1(p: np.ndarray, y: np.ndarray) -> float:
    """F1 of class 1 for two classes, macro F1 for more."""
    from sklearn.metrics import f1_score

    binary = max(int(np.max(p)), int(np.max(y))) <= 1
    return float(f1_score(y, p, average="binary" if binary else "macro", zero_division=0))


def _matthews(p: np.ndarray, y: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(y, p))


def _pearson(p: np.ndarray, y: np.ndarray) -> float:
    """0 where one side is constant and the correlation is undefined."""
    from scipy.stats import pearsonr

    return 0.0 if np.ptp(p) == 0 or np.ptp(y) == 0 else float(pearsonr(p, y).statistic)


def _spearman(p: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return 0.0 if np.ptp(p) == 0 or np.ptp(y) == 0 else float(spearmanr(p, y).statistic)


def _pearson_spearman(p: np.ndarray, y: np.ndarray) -> float:
    return (_pearson(p, y) + _spearman(p, y)) / 2


Score = Callable[[np.ndarray, np.ndarray], float]

_OFFLINE: dict[str, Score] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
}
_REGRESSION = ("pearson", "spearman", "pearson_spearman")


def _offline_metric(name: str) -> Any:
    """One of our metrics as an `evaluate.Metric`."""
    import datasets
    import evaluate

    value = datasets.Value("float64" if name in _REGRESSION else "int64")
    score = _OFFLINE[name]

    class OfflineMetric(evaluate.Metric):  # type: ignore[misc]
        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=f"{name}, computed offline",
                citation="",
                inputs_description="predictions and references, one number a row",
                features=datasets.Features({"predictions": value, "references": value}),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {name: score(np.asarray(predictions), np.asarray(references))}

    return OfflineMetric(keep_in_memory=True)


def load_metric(name: str) -> Any:
    """An `evaluate` metric: ours where we have it, else the Hub's.

    Raises:
        SoraError: the Hub has none of that name, or can not be reached.
    """
    if name in _OFFLINE:
        return _offline_metric(name)
    import evaluate

    try:
        return evaluate.load(name)
    except Exception as error:  # evaluate raises many kinds for one cause
        raise SoraError(
            f"no metric '{name}': it is none of the built-in ones and the Hub gave none",
            where=f"built-in: {', '.join(_OFFLINE)}",
            hint=f"{type(error).__name__}: {str(error).splitlines()[0][:120]}",
        ) from error


class Scorer:
    """Computes a list of metrics; the first, or `best`, is the one that chooses checkpoints."""

    def __init__(self, names: Sequence[str], best: str | None = None) -> None:
        self.names = list(names)
        self.best = best or self.names[0]
        if self.best not in self.names:
            raise SoraError(
                f"task.best_metric '{self.best}' is not among the metrics",
                where=f"task.metrics: {', '.join(self.names)}",
            )
        self._metrics = {name: load_metric(name) for name in self.names}

    def __call__(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Scores by name; a Hub metric with several values gives all of them.

        A non-finite prediction makes every score NaN: it must never win a comparison.
        """
        if not np.isfinite(predictions).all():
            return {name: float("nan") for name in self.names}
        scores: dict[str, float] = {}
        for metric in self._metrics.values():
            result = metric.compute(predictions=predictions, references=labels)
            scores.update({key: float(value) for key, value in result.items()})
        return scores
