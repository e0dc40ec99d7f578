"""Truncation rules for trained updates: rank, energy, mean rank or parameters.

Every rule looks at singular values alone. Each layer's result is then the best approximation of its
rank in the Frobenius norm (Eckart-Young).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, model_validator

from methods.budgets import holding_energy, strongest, within_parameters

if TYPE_CHECKING:
    from methods.budgets import Values

RULES: Mapping[str, str] = {
    "mean_rank": "pooled singular values: the largest of all layers together, as PARA "
    "(arXiv 2604.27796)",
    "max_params": "pooled squared singular values per number stored, over all layers together, "
    "the largest that fit",
    "energy": "each layer by itself: the largest singular values that hold that share of its "
    "squared norm",
    "rank": "each layer by itself: its largest singular values",
}
"""The way each rule chooses, for people."""


@dataclass(frozen=True)
class Keep:
    """A truncation rule; without one, everything is kept.

    Attributes:
        mean_rank: components per layer, those with the largest singular values of all layers.
        rank: largest rank of a layer.
        max_params: numbers in all factors together; layers stored in full are not counted.
        energy: share of the squared singular values, above 0 and up to 1.
    """

    mean_rank: float | None = None
    rank: int | None = None
    max_params: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if len(self.given()) > 1:
            raise ValueError(_exclusive(self.given()))

    def given(self) -> dict[str, float]:
        """Return the name and value of the rule; empty if there is none."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if value is not None}

    def ranks(
        self,
        values: Values,
        cost: Mapping[str, int],
        *,
        live: Mapping[str, int] | None = None,
        squared: Mapping[str, float] | None = None,
        modules: int | None = None,
        together: bool = False,
    ) -> dict[str, int]:
        """Return each layer's rank, which may be above the number of its components.

        Args:
            values: singular values of each layer's update, descending, float64; with `squared` the
                leading ones may do.
            cost: numbers that a component of each layer takes.
            live: components of each layer that are not zero, where `max_params` keeps all of them
                if they fit; None: its singular values above zero.
            squared: squared Frobenius norm of each layer's whole update.
            modules: number that `mean_rank` is the mean over, with dead modules that are not
                stored; None: the layers.
            together: `energy` is of all layers together, not of each by itself.
        """
        if self.mean_rank is not None:
            return strongest(values, int(self.mean_rank * (modules or len(values))))
        if self.rank is not None:
            return dict.fromkeys(values, self.rank)
        if self.max_params is not None:
            if live is not None and sum(live[p] * cost[p] for p in values) <= self.max_params:
                return dict(live)
            return within_parameters(values, cost, self.max_params)
        if self.energy is not None and together:
            return holding_energy(values, self.energy)
        if self.energy is not None:
            from methods.factors import rank_for_energy  # the rules are read before torch loads

            norms = squared or {}
            return {p: rank_for_energy(s, self.energy, norms.get(p)) for p, s in values.items()}
        return {path: len(s) for path, s in values.items()} if live is None else dict(live)


class KeepOptions(BaseModel):
    """The rule as a person gives it: in a recipe's block, or as options of a command."""

    mean_rank: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="cut to so many components per module, the strongest over all modules",
    )
    rank: int | None = Field(None, ge=1, description="cut each module to this rank at most")
    max_params: int | None = Field(
        None, ge=1, description="cut to so many numbers in all factors together"
    )
    energy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="cut each module to this share of its squared singular values",
    )

    def keep(self) -> Keep:
        """Return the rule."""
        return Keep(self.mean_rank, self.rank, self.max_params, self.energy)

    @model_validator(mode="after")
    def _one_rule(self) -> KeepOptions:
        self.keep()
        return self


def _exclusive(rules: Mapping[str, float]) -> str:
    return f"{' and '.join(rules)} exclude each other: give one of them"
