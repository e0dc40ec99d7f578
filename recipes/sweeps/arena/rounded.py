"""A cut whose factors lie on a grid of few bits while it heals.

    sora train rte --code recipes/sweeps/arena/rounded.py method.name=rounded method.bits=4

The grid is that of `methods.grid`. Gradients are those at the rounded factors and move the
unrounded ones ("straight through": Bengio et al. 2013, arXiv 1308.3432).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from methods.base import Layers, StepInfo
from methods.configs import CutConfig
from methods.cut import Cut
from methods.grid import nearest
from methods.keep import Bits

_REST = "rest of "


class RoundedConfig(CutConfig):
    """Options of a cut that heals in few bits."""

    finds_size = False

    bits: Bits = Field(4, description="bits of every number after the cut")

    @model_validator(mode="after")
    def _exact_scaling(self) -> RoundedConfig:
        # the scaling is multiplied into B when it is stored, and a grid's scales have 8 bits
        if math.frexp(self.alpha / self.r_max)[0] != 0.5:
            raise ValueError(
                f"alpha/r_max is {self.alpha:g}/{self.r_max}: it must be a power of two, or the "
                "factors would leave the grid when they are stored"
            )
        return self


class Rounded(Cut):
    """`cut`, with factors on a grid of few bits from the cut to the end.

    The layers hold the rounded factors, so these are evaluated, stored and delivered. The method
    keeps the rest, unrounded minus rounded. It is added back after each step of the optimiser,
    which moved the rounded factors; the sum is the unrounded factors after that step, and is
    rounded again. One difference from an optimiser of the unrounded factors: weight decay shrinks
    the rounded ones.

    Not for factors that are sharded (FSDP).
    """

    name = "rounded"
    config_class = RoundedConfig
    config: RoundedConfig
    averages = 1

    def __init__(self, config: RoundedConfig) -> None:
        super().__init__(config)
        self._rest: dict[str, Tensor] = {}  # of a factor's live components, (left, length)

    def begin(self, layers: Layers, *, total_steps: int) -> None:
        """Compute the step of the cut; until then nothing is rounded."""
        super().begin(layers, total_steps=total_steps)
        self._rest = {}

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        """Cut if due; after the cut, round."""
        super().after_step(layers, info)
        if self._record is not None:
            self._round(layers)

    def _round(self, layers: Layers) -> None:
        live: dict[str, Tensor] = {}  # views: A's rows, B's columns
        for (path, layer), left in zip(layers.items(), self._left, strict=True):
            if left:
                live |= {f"{path}.A": layer.A.data[:left], f"{path}.B": layer.B.data.T[:left]}
        # all rows of one length at once: the grid tries many scales, each in several small steps
        for length in {rows.shape[1] for rows in live.values()}:
            alike = {name: rows for name, rows in live.items() if rows.shape[1] == length}
            exact = torch.cat([rows + self._rest.get(name, 0) for name, rows in alike.items()])
            rounded = nearest(exact, self.config.bits).values().to(exact.dtype)
            sizes = [len(rows) for rows in alike.values()]
            parts = [torch.split(t, sizes) for t in (rounded, exact - rounded)]
            for (name, rows), new, rest in zip(alike.items(), *parts, strict=True):
                rows.copy_(new)
                self._rest[name] = rest.clone()  # a view would share memory in a file

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the cut, and the rest of each factor."""
        return super().state_dict() | {_REST + name: rest for name, rest in self._rest.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state returned by `state_dict`; an empty one (LoRA's) means no cut yet."""
        super().load_state_dict(state)
        self._rest = {
            name.removeprefix(_REST): rest.clone()
            for name, rest in state.items()
            if name.startswith(_REST)
        }
