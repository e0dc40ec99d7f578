"""The part of an adapter that survives where its numbers are rounded: merged, or to few bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ENOUGH = 0.95
"""Share of the update below which a merge warns."""
LEAST = 0.75
"""Share of the update below which nothing is written, unless the loss is accepted or tested."""
_FAR = 0.1
"""Modules whose share is lower than the total share by this much are named."""
_NAMED = 3


@dataclass(frozen=True)
class Overlap:
    """Inner products that compare an update dW with the stored change dW' = W' - W.

    Attributes:
        update: <dW, dW>.
        along: <dW', dW>.
        change: <dW', dW'>; measured only for stochastic rounding or a changed dtype, else 0.
    """

    update: float = 0.0
    along: float = 0.0
    change: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.update + other.update, self.along + other.along, self.change + other.change
        )

    @property
    def share(self) -> float:
        """<dW', dW> / <dW, dW>; 1 if dW is zero."""
        # the projection of dW' on dW: rounding errors across dW do not count as a part of it
        return self.along / self.update if self.update else 1.0

    @property
    def noise(self) -> float:
        """||dW' - share dW|| / ||dW||; 0 if dW is zero."""
        # Pythagoras: ||dW'||^2 = share^2 ||dW||^2 + ||dW' - share dW||^2
        across = self.change - self.along * self.share
        return math.sqrt(max(across, 0.0) / self.update) if self.update else 0.0


def total(parts: Iterable[Overlap]) -> Overlap:
    """Add the inner products of several updates, as if the updates were one long vector."""
    return sum(parts, Overlap())


@dataclass(frozen=True)
class Survival:
    """The part of an adapter that survives in the stored weights.

    Attributes:
        layers: by adapted module.
        heads: by parameter trained in full; its update is the difference from the base's parameter
            that it replaces.
    """

    layers: Mapping[str, Overlap]
    heads: Mapping[str, Overlap]

    @property
    def all(self) -> Overlap:
        """The sum over all layers."""
        return total(self.layers.values())

    @property
    def share(self) -> float:
        """The share of all layers together or of all heads together, whichever is smaller."""
        return min(self.all.share, total(self.heads.values()).share)

    @property
    def is_lossy(self) -> bool:
        """Less than `ENOUGH` of the update is left, or the noise is larger than the update."""
        return self.share < ENOUGH or self.all.noise > 1

    def worst(self) -> list[tuple[str, float]]:
        """Return modules and parameters with shares far below the total, smallest first."""
        shares = {name: overlap.share for name, overlap in {**self.layers, **self.heads}.items()}
        far = [(name, share) for name, share in shares.items() if share < self.all.share - _FAR]
        return sorted(far, key=lambda entry: entry[1])[:_NAMED]

    def record(self) -> dict[str, float]:
        """Return the total share and noise, for the model's configuration."""
        return _record(self.all)

    def table(self) -> dict[str, dict[str, float]]:
        """Return share and noise of each module and of each parameter trained in full."""
        parts = {**self.layers, **self.heads}
        return {name: _record(overlap) for name, overlap in parts.items() if overlap.update}


def _record(overlap: Overlap) -> dict[str, float]:
    noise = {"noise": round(overlap.noise, 5)} if overlap.change else {}
    return {"share": round(overlap.share, 5), **noise}


def shown(survival: Survival, holder: str) -> str:
    """Return one line on the share of the update that survives.

    Args:
        holder: the beginning of the line: "the merged weights hold".
    """
    overlap = survival.all
    if not overlap.update and not survival.heads:
        return "the adapter's layers change nothing"
    held = f"{overlap.share:.1%}"
    # more than all of it is no gain: noise or a coarse grid has made the update stronger
    text = f"{holder} {held} of the adapter's update"
    if overlap.share > 1 and held != "100.0%":
        text = f"{holder} the adapter's update at {held} of its strength"
    if survival.heads:
        text += f", {total(survival.heads.values()).share:.1%} of the parts trained in full"
    worst = ", ".join(f"{name} {share:.1%}" for name, share in survival.worst())
    text += f" (least: {worst})" if worst else ""
    text += f"; rounding noise: {overlap.noise:.1%} of its size" if overlap.change else ""
    return text + (", larger than the update itself" if overlap.noise > 1 else "")
