"""The options that every task family has, and the facts that the tool asks of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sora_cli.recipe.metric_facts import facts_of
from sora_cli.recipe.types import Block, SomeNames

Columns = Mapping[str, tuple[str, ...]]


def metrics_field(*default: str, known: str = "") -> Any:
    """Return the field of a family's metrics, with its default and what is known of them."""
    about = f": {known}" if known else "; the first one chooses the checkpoint"
    return Field(list(default), description=f"metrics to report{about}")


def _greater(values: dict[str, Any]) -> bool:
    best = values.get("best_metric") or (values.get("metrics") or ("",))[0]
    return not facts_of(best).smaller_is_better


class TaskOptions(Block):
    """Options of every family: its metrics, and the metric that chooses the checkpoint."""

    NAME: ClassVar[str]
    """The family's name in recipes; only for families that are not ours."""
    FAMILY: ClassVar[str]
    """Place of the family's class, "module:Class"; only for families of packages."""
    METRICS: ClassVar[tuple[str, ...]] = ()
    TEXT_METRICS: ClassVar[tuple[str, ...]] = ()
    """Metrics that need generated texts."""
    FROM_THE_HUB: ClassVar[bool] = False
    """True: other names are metrics of the Hub's own collection, and their code is run."""
    COUNTS_ROWS: ClassVar[bool] = True
    """True if accuracy counts whole rows, each right or wrong."""
    ROWS_ALONE: ClassVar[bool] = True
    """True if the answer to a row does not depend on the other rows."""
    LOSS_COMPARES: ClassVar[Literal["nothing", "micro-batch", "step"]] = "nothing"
    """The rows that a row's loss depends on: of its micro-batch, of its step, or no other rows."""
    CHUNKS_LOSS: ClassVar[bool] = False
    """True: the loss can be computed in chunks of logits (training.loss)."""
    COLUMNS: ClassVar[Columns] = {}
    WHOLE_TEXTS: ClassVar[tuple[str, ...]] = ()
    """Parts of a row that hold a whole text: beside them there is no prompt to put into a form."""
    MODEL_CLASS: ClassVar[str]
    """The Auto class of transformers that loads the family's models."""
    UNREAD: ClassVar[tuple[str, ...]] = ()
    """Modules of the model that the family does not read: they may be missing."""
    PROCESSOR_CLASS: ClassVar[str] = "AutoTokenizer"
    HUB_TASK: ClassVar[str]
    """The Hub's name for the task."""

    metrics: SomeNames = metrics_field("accuracy")
    best_metric: str | None = Field(
        None, description="metric that chooses the best checkpoint. Default: the first of metrics"
    )
    greater_is_better: bool = Field(
        default_factory=_greater,
        description="whether a larger best_metric is better. Default: false for loss and "
        "perplexity, else true",
    )

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, values: Any) -> Any:
        """Drop `metrics: null`, by which earlier versions meant the family's defaults."""
        if isinstance(values, Mapping) and values.get("metrics", ()) is None:
            return {key: value for key, value in values.items() if key != "metrics"}
        return values
