"""What can be set on each built-in method. Importable without torch, so recipes are checked early.

A method's configuration is a pydantic model: unknown keys are errors, every field says its unit.
Third-party methods subclass `MethodConfig` (or one of the classes below) in the same way; those
that adapt no layers, `MethodOptions`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Betas = tuple[
    Annotated[float, Field(ge=0, lt=1)],
    Annotated[float, Field(ge=0, lt=1)],
]


class MethodOptions(BaseModel):
    """What every method's configuration is; without a field of its own, nothing can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodConfig(MethodOptions):
    """Options every adapter method has: which layers it adapts, and how strongly."""

    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="layers to adapt: all-linear (every linear layer but the head), or a list of "
        "names ('query', 'attention.output.dense') and patterns with * or ? on the full path",
    )
    alpha: float = Field(
        16.0, gt=0, description="scaling numerator; the update is scaled by alpha/r"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout probability on the adapter's input"
    )


class LoraConfig(MethodConfig):
    """LoRA (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = Field(8, ge=1, le=65536, description="rank of every adapted layer")
    use_rslora: bool = Field(
        False, description="scale by alpha/sqrt(r) instead of alpha/r (Kalajdzievski 2023)"
    )


class AdaLoraConfig(MethodConfig):
    """AdaLoRA (Zhang et al. 2023, arXiv 2303.10512)."""

    init_r: int = Field(12, ge=1, le=65536, description="rank of every layer at the start")
    target_r: float = Field(
        8, ge=0, description="mean rank per layer at the end; the budget is target_r x layers"
    )
    t_init: int | float = Field(
        0.1, ge=0, description="steps before the budget falls; below 1: a share of the run's steps"
    )
    t_final: int | float = Field(
        0.3, ge=0, description="last steps at the final budget; below 1: a share of the run's steps"
    )
    delta_t: int = Field(
        1, ge=1, description="steps between two allocations while the budget falls"
    )
    beta1: float = Field(0.85, ge=0, lt=1, description="smoothing of the importance (eq. 5)")
    beta2: float = Field(0.85, ge=0, lt=1, description="smoothing of the uncertainty (eq. 6)")
    orth_weight: float = Field(0.5, ge=0, description="gamma, weight of the orthogonality penalty")

    @model_validator(mode="after")
    def _target_below_start(self) -> AdaLoraConfig:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r {self.target_r:g} is above init_r {self.init_r}")
        return self


class SoraConfig(MethodConfig):
    """SoRA (Ding et al. 2023, arXiv 2311.11696)."""

    r_max: int = Field(8, ge=1, le=65536, description="components every layer starts with")
    threshold: float = Field(
        3e-4, ge=0, description="xi: each step moves every gate this far towards zero"
    )
    prox: Literal["paper", "official"] = Field(
        "paper", description="soft threshold of the paper, or the authors' code (dead zone 2 xi)"
    )
    threshold_times_lr: bool = Field(
        False, description="multiply xi by the gates' learning rate of the step (authors' option)"
    )
    l1: float = Field(
        0.0, ge=0, description="adds l1 x mean |gate| to the training loss (authors' sparse_lambda)"
    )
    gate_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the gates; unset: training.learning_rate"
    )
    gate_eps: float = Field(1e-8, ge=0, description="epsilon of the gates' AdamW")
    betas: Betas | None = Field(
        None, description="betas of the gates' AdamW; unset: the optimiser's"
    )
