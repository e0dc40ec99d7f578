"""Options of the family `thumbs`."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from sora_cli.recipe.task_options import (
    OF_LOGPS,
    AnswerOptions,
    Columns,
    metrics_field,
    reference_field,
)
from sora_cli.recipe.types import SomeNames
from sora_cli.recipe.usual import SPEAKS

COMPLETION, LABEL = "completion", "label"
"""The parts of a row beside its prompt: the answer, and its thumb."""
_METRICS = (*OF_LOGPS, "kl")


class ThumbsOptions(AnswerOptions):
    """Answers that are good or bad, each by itself: thumbs up or down (KTO)."""

    PEFT_TYPE = "CAUSAL_LM"
    TRAINS_HEAD = False
    CAN_SPEAK = True
    CHUNKS_LOSS = True
    LOSS_COMPARES = "step"
    METRICS = (*_METRICS, "loss")
    ANSWERED_BY = ("prediction", "reward")
    MODEL_CLASS = "AutoModelForCausalLM"
    HUB_TASK = "text-generation"
    USUAL = replace(SPEAKS, builtin="builtin://tiny-llama")
    COLUMNS: ClassVar[Columns] = {
        "prompt": AnswerOptions.COLUMNS["prompt"],
        COMPLETION: ("completion", "response", "answer", "output", "messages", "conversations"),
        LABEL: ("label", "thumb", "kto_tag"),
        "tools": AnswerOptions.COLUMNS["tools"],
    }

    metrics: SomeNames = metrics_field(*_METRICS, known=", ".join((*_METRICS, "loss")))
    beta: float = Field(
        0.1, gt=0, description="strength of the thumbs: of the distance from the reference model"
    )
    desirable_weight: float = Field(
        1.0, gt=0, description="weight of a row with thumbs up in the loss, for unequal numbers"
    )
    undesirable_weight: float = Field(
        1.0, gt=0, description="weight of a row with thumbs down in the loss"
    )
    reference: str = reference_field()

    @property
    def needs_reference(self) -> bool:
        """True: a reward is a difference from the reference model."""
        return True
