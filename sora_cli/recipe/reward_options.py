"""Options of the family `reward`."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from sora_cli.recipe.task_options import OF_REWARDS, Columns, PairOptions, metrics_field
from sora_cli.recipe.types import SomeNames
from sora_cli.recipe.usual import SPEAKS

ANSWER = "answer"
"""The part of rows whose single answers get a reward."""


class RewardOptions(PairOptions):
    """One number for an answer, learned from pairs: a reward model (Bradley-Terry)."""

    PEFT_TYPE = "SEQ_CLS"
    METRICS = (*OF_REWARDS, "loss")
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HUB_TASK = "text-classification"
    COLUMNS: ClassVar[Columns] = {
        **PairOptions.COLUMNS,
        ANSWER: ("answer", "completion", "response", "output"),
    }
    USUAL: ClassVar = replace(SPEAKS, builtin="builtin://tiny-llama", texts=2, learns_texts=False)

    metrics: SomeNames = metrics_field(*OF_REWARDS, known=", ".join((*OF_REWARDS, "loss")))
    centring: float = Field(
        0.0,
        ge=0,
        description="weight of the squared sum of a pair's two rewards, which keeps rewards near 0 "
        "(Eisenstein et al. 2023, arXiv 2312.09244); TRL's center_rewards_coefficient",
    )
