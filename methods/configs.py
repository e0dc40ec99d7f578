"""Options of the built-in methods, and each method's paper and traits.

A configuration is a pydantic model: unknown keys are errors, and every field says its unit. The
paper and the traits are class variables here, not on the method class, because this module does not
import torch: recipes are checked and methods are listed without it. Third-party methods subclass
`MethodConfig` (or one of the classes below) in the same way; baselines subclass `MethodOptions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from methods.keep import Keep

Betas = tuple[
    Annotated[float, Field(ge=0, lt=1)],
    Annotated[float, Field(ge=0, lt=1)],
]


class MethodOptions(BaseModel):
    """Base class of all method options; it has no options itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: ClassVar[str] = ""
    """Authors, year, arXiv number."""
    low_rank: ClassVar[bool] = False
    """False for baselines, which train the model's own parameters: see `methods.baselines`."""
    adapts_rank: ClassVar[bool] = False
    """True if training itself removes components."""
    variable_options: ClassVar[tuple[str, ...]] = ()
    """Options that `set_option` may change between the stages of a path."""
    turns_basis: ClassVar[bool] = False
    """True if training changes the basis of the factors, so component i may change its meaning."""
    rate_factor: ClassVar[float] = 1.0
    """Best learning rate as a multiple of LoRA's, for the rule of thumb."""
    finds_size: ClassVar[bool] = False
    """True for the method with which `sora auto` trains adapters of a given size: see `of_size`."""
    EXAMPLE: ClassVar[Mapping[str, Any]] = {}
    """Options of a small run, of at least six steps on a tiny model, for checks of the method."""


class MethodConfig(MethodOptions):
    """Options of every low-rank method: the layers to adapt, scaling and dropout."""

    low_rank = True

    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="layers to adapt: all-linear (every linear layer except the head and layers "
        "where an adapter would have no effect, which are reported), or a list of names ('query', "
        "'attention.output.dense') and patterns with * or ? for the full path",
    )
    alpha: float = Field(
        16.0, gt=0, description="scaling numerator; the update is scaled by alpha/r"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout probability on the adapter's input"
    )

    def start(self) -> tuple[int, float] | None:
        """Return rank and alpha of every layer at the start; their quotient is the scaling.

        None: not known from the options.
        """
        return None

    @classmethod
    def of_size(cls, rank: int, max_params: int, after: int | float) -> dict[str, Any]:
        """Return the options of a run that cuts its adapter to a size (only with `finds_size`).

        Args:
            rank: of every layer at the start. Until the cut the run must be bit-equal to one of
                `registry.plain_method` at that rank.
            max_params: numbers in all factors together at the end.
            after: steps before the cut; below 1: a share of the run's steps.
        """
        raise NotImplementedError(f"{cls.__name__} finds no size")


class LoraConfig(MethodConfig):
    """Options of LoRA."""

    paper = "Hu et al. 2021, arXiv 2106.09685"
    EXAMPLE = {"r": 3}

    r: int = Field(8, ge=1, le=65536, description="rank of every adapted layer")
    use_rslora: bool = Field(
        False, description="scale by alpha/sqrt(r) instead of alpha/r (Kalajdzievski 2023)"
    )

    def start(self) -> tuple[int, float]:
        """Return rank and alpha at the start."""
        # alpha sqrt(r) / r = alpha / sqrt(r), the scaling of rsLoRA
        return self.r, self.alpha * math.sqrt(self.r) if self.use_rslora else self.alpha


class AdaLoraConfig(MethodConfig):
    """Options of AdaLoRA; equation numbers refer to its paper."""

    paper = "Zhang et al. 2023, arXiv 2303.10512"
    rate_factor = 10.0  # SST-2, STS-B: best at 1e-2, LoRA at 1e-3 (docs/results/rates.md)
    adapts_rank = True
    variable_options = ("target_r",)
    EXAMPLE = {"init_r": 4, "target_r": 2}

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

    def start(self) -> tuple[int, float]:
        """Return rank and alpha at the start."""
        return self.init_r, self.alpha

    @model_validator(mode="after")
    def _target_below_start(self) -> AdaLoraConfig:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r {self.target_r:g} is above init_r {self.init_r}")
        return self


class SoraConfig(MethodConfig):
    """Options of SoRA: the paper's, and a budget as the alternative to a threshold."""

    paper = "Ding et al. 2023, arXiv 2311.11696"
    adapts_rank = True
    variable_options = ("threshold", "l1", "target_r")
    EXAMPLE = {"r_max": 4, "threshold": 0.01}

    r_max: int = Field(8, ge=1, le=65536, description="components every layer starts with")
    threshold: float | None = Field(
        3e-4,
        ge=0,
        description="xi: each step moves every gate this far towards zero; null with target_r",
    )
    target_r: float | None = Field(
        None,
        ge=0,
        description="budget instead of a threshold: mean components per layer at the end; each "
        "step uses the smallest xi that leaves no more gates than the budget of this step",
    )
    t_init: int | float = Field(
        0.1,
        ge=0,
        description="with target_r: steps before the budget falls; below 1: a share of the run's "
        "steps",
    )
    t_final: int | float = Field(
        0.2,
        ge=0,
        description="with target_r: last steps at the final budget; below 1: a share of the run's "
        "steps",
    )
    shrink: Literal["soft", "hard"] = Field(
        "soft",
        description="effect of a step on gates that survive it: soft moves them by xi (L1, the "
        "paper's equation), hard does not change them (L0; only with target_r, its default)",
    )
    gate_init: Literal["normal", "ones"] = Field(
        "normal", description="gates at the start: drawn from N(0, 1), as in the paper, or all 1"
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
        None, gt=0, description="peak learning rate of the gates. Default: training.learning_rate."
    )
    gate_eps: float = Field(1e-8, ge=0, description="epsilon of the gates' AdamW")
    betas: Betas | None = Field(
        None, description="betas of the gates' AdamW. Default: those of the optimiser."
    )

    def start(self) -> tuple[int, float]:
        """Return rank and alpha at the start."""
        return self.r_max, self.alpha

    @model_validator(mode="before")
    @classmethod
    def _budget_for_threshold(cls, values: Any) -> Any:
        """Default to `shrink: hard` and no threshold if a budget is given."""
        if isinstance(values, dict) and values.get("target_r") is not None:
            return {"threshold": None, "shrink": "hard", **values}
        return values

    @model_validator(mode="after")
    def _one_of_both(self) -> SoraConfig:
        if self.target_r is None:
            if self.threshold is None:
                raise ValueError("threshold is null and target_r is not given: give one of the two")
            if self.shrink == "hard":
                raise ValueError("shrink: hard needs a budget: give target_r")
            return self
        if self.threshold is not None:
            raise ValueError(
                f"threshold {self.threshold:g} and target_r {self.target_r:g} both set the number "
                "of gates left: give one, and set the other to null"
            )
        if self.target_r > self.r_max:
            raise ValueError(f"target_r {self.target_r:g} is above r_max {self.r_max}")
        if self.prox == "official":
            raise ValueError(
                "prox: official keeps |gate| = 2 xi, so no smallest xi meets a target_r: use paper"
            )
        if self.threshold_times_lr:
            raise ValueError("target_r sets xi itself: threshold_times_lr needs a threshold")
        return self


_CUT_SHARE = 0.15
"""Share of all components that a cut keeps if no budget is given."""


class CutConfig(MethodConfig):
    """Options of LoRA with a cut, with at most one of three budgets."""

    paper = "Hu et al. 2021, arXiv 2106.09685, cut as in PARA, arXiv 2604.27796, then trained on"
    adapts_rank = True
    turns_basis = True
    finds_size = True
    variable_options = ("target_r",)
    EXAMPLE = {"r_max": 4, "target_r": 1.5, "cut_at": 0.5}

    r_max: int = Field(8, ge=1, le=65536, description="rank of every layer until the cut")
    target_r: float | None = Field(
        None,
        ge=0,
        description="budget: mean rank per layer after the cut; without any budget "
        f"{_CUT_SHARE} x r_max",
    )
    max_params: int | None = Field(
        None, ge=0, description="budget: most parameters in all factors together after the cut"
    )
    energy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="budget: share of the squared singular values of all layers to keep",
    )
    cut_at: int | float = Field(
        0.8, gt=0, description="steps before the cut; below 1: a share of the run's steps"
    )

    def start(self) -> tuple[int, float]:
        """Return rank and alpha at the start."""
        return self.r_max, self.alpha

    def keep(self) -> Keep:
        """Return the rule of the cut; its energy is measured over all layers together."""
        if self.energy is not None or self.max_params is not None:
            return Keep(max_params=self.max_params, energy=self.energy)
        return Keep(mean_rank=_CUT_SHARE * self.r_max if self.target_r is None else self.target_r)

    @classmethod
    def of_size(cls, rank: int, max_params: int, after: int | float) -> dict[str, Any]:
        """Return the options of one cut to `max_params` numbers."""
        return {"r_max": rank, "max_params": max_params, "cut_at": after}

    @model_validator(mode="after")
    def _one_budget(self) -> CutConfig:
        given = [n for n in ("target_r", "max_params", "energy") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both budgets: give one")
        if self.target_r is not None and self.target_r > self.r_max:
            raise ValueError(f"target_r {self.target_r:g} is above r_max {self.r_max}")
        return self


class FullOptions(MethodOptions):
    """Full fine-tuning, which has no options."""

    paper = "Devlin et al. 2019, arXiv 1810.04805 (section 3.2)"
    rate_factor = 0.1  # LoRA takes ten times the rate of full fine-tuning (Schulman et al. 2025)


class HeadOptions(MethodOptions):
    """A trained head on the frozen model, which has no options."""

    paper = "Alain and Bengio 2016, arXiv 1610.01644 (linear probes)"
    rate_factor = 3.3  # 5e-3 is best of three rates, 1.5e-3 for LoRA: docs/results/tune.md


class BitFitOptions(MethodOptions):
    """BitFit, which has no options."""

    paper = "Ben Zaken et al. 2022, arXiv 2106.10199"
