"""The kind of number that each metric is: built-in metrics, and metrics of added families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sora_cli.core.errors import SoraError


@dataclass(frozen=True)
class MetricFacts:
    """The kind of a metric; a metric of the Hub has none of these.

    Attributes:
        ends_at_1: the best score is 1, so that a point is 0.01.
        right_or_wrong: each row is right or wrong, and the metric is the share that is right, where
            the family counts rows.
        smaller_is_better: as of a loss.
        of_classes: formula of `tasks.row_scores` that scores one class as the answer to every row.
    """

    ends_at_1: bool = False
    right_or_wrong: bool = False
    smaller_is_better: bool = False
    of_classes: str | None = None


_SHARE, _ROWS = MetricFacts(ends_at_1=True), MetricFacts(ends_at_1=True, right_or_wrong=True)
_LOSS = MetricFacts(smaller_is_better=True)
METRICS: dict[str, MetricFacts] = {
    "accuracy": MetricFacts(ends_at_1=True, right_or_wrong=True, of_classes="right"),
    "f1": MetricFacts(ends_at_1=True, of_classes="f1"),
    "matthews_correlation": MetricFacts(ends_at_1=True, of_classes="matthews_correlation"),
    **dict.fromkeys(("exact_match", "recall_at_1", "text_recall_at_1"), _ROWS),
    "rewards/accuracies": _ROWS,
    **dict.fromkeys(("pearson", "spearman", "pearson_spearman"), _SHARE),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "token_accuracy"), _SHARE),
    **dict.fromkeys(("precision", "recall"), _SHARE),
    **dict.fromkeys(("ndcg_at_10", "mrr_at_10", "recall_at_10"), _SHARE),
    **dict.fromkeys(("accuracy_at_1", "accuracy_at_10"), _SHARE),
    **dict.fromkeys(("loss", "perplexity"), _LOSS),
}
_OTHER = MetricFacts()
_ADDED: dict[str, MetricFacts] = {}


def add_facts(facts: Mapping[str, MetricFacts]) -> None:
    """Add the metrics of a family of somebody else's; a name means the same in all families."""
    for name, kind in facts.items():
        if {**METRICS, **_ADDED}.get(name, kind) != kind:
            raise SoraError(f"there is a metric '{name}' of another kind already: use another name")
    _ADDED.update(facts)


def facts_of(metric: str) -> MetricFacts:
    """Return the kind of a metric."""
    return METRICS.get(metric) or _ADDED.get(metric, _OTHER)
