"""Rules for cutting trained updates: by rank, energy, mean rank or parameters.

Every rule reads singular values only and returns a rank for each layer. The layer is then replaced
by its best approximation of this rank in the Frobenius norm (Eckart-Young).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, Field, model_validator

from methods.budgets import holding_energy, strongest, within_parameters

if TYPE_CHECKING:
    from methods.budgets import Values

Bits = Literal[2, 3, 4, 8]
"""Bits of a number after rounding; see `methods.grid`."""
BITS: tuple[int, ...] = get_args(Bits)
HEAD_BITS = 8
"""Bits of a rounded head."""

RULES: Mapping[str, str] = {
    "mean_rank": "pooled singular values: the largest of all layers together, as PARA "
    "(arXiv 2604.27796)",
    "max_params": "pooled squared singular values per number stored, over all layers together, "
    "the largest that fit",
    "energy": "each layer by itself: the largest singular values that hold that share of its "
    "squared norm",
    "rank": "each layer by itself: its largest singular values",
}
"""A description of each rule for reports."""


@dataclass(frozen=True)
class Keep:
    """A rule that gives each layer's rank after a cut; at most one field is set, none keeps all.

    Attributes:
        mean_rank: components per layer on average: the largest singular values of all layers.
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
        """Return the rule as {name: value}; empty if no rule is set."""
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
        """Return each layer's rank; it may exceed the number of the layer's components.

        Args:
            values: singular values of each layer's update, descending, float64; with `squared` the
                leading values are enough.
            cost: numbers in a component of each layer.
            live: number of live components of each layer. If given and all of them fit into
                `max_params`, all are kept, also those with tiny singular values.
            squared: squared Frobenius norm of each layer's whole update.
            modules: number of modules that `mean_rank` averages over, including dead modules that
                are not stored; None: the number of layers in `values`.
            together: measure `energy` over all layers together, not layer by layer.
        """
        if self.mean_rank is not None:
            # rounded down, so that the mean rank is never above the given one
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
    """The rule in a recipe's block or in the options of a command."""

    mean_rank: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="cut to this mean rank per module: keep the largest singular values of all",
    )
    rank: int | None = Field(None, ge=1, description="cut each module to at most this rank")
    max_params: int | None = Field(
        None, ge=1, description="cut to at most this many parameters in all factors together"
    )
    energy: float | None = Field(
        None,
        gt=0,
        le=1,
        description="cut each module, keeping this share of its squared singular values",
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
