"""A cut whose components are chosen by another score than their singular values.

    sora train rte --code recipes/sweeps/arena/scored.py method.name=scored method.score=activation

singular    singular values of the update, as `cut` has them
activation  singular values of the update on the layer's inputs, `||dW X||`, whose basis it takes
            (as SVD-LLM, arXiv 2403.07378, for weights)
gradient    `|<g, w>|` of each singular component: how much the loss changes to first order without
            it (Molchanov et al. 2019, arXiv 1906.10771; PrunedLoRA, 2510.00192, has gradients, too)
fisher      `sum F w^2` of each singular component, to second order, F the mean squared gradient

Gradients and their squares are AdamW's moments at the cut, so they are means over the last tens and
hundreds of steps. Inputs are those of the last steps before the cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from methods.base import Layers, LowRankLinear, StepInfo
from methods.basis import SingularBasis, singular_basis, turn
from methods.configs import CutConfig
from methods.cut import Cut, CutRecord
from methods.errors import MethodError
from methods.schedules import steps_of

_INPUTS = "inputs of "


class ScoredConfig(CutConfig):
    """Options of a cut by another score."""

    finds_size = False

    score: Literal["singular", "activation", "gradient", "fisher"] = Field(
        "activation", description="score by which components are kept"
    )
    seen: int | float = Field(
        0.05,
        gt=0,
        description="steps before the cut whose inputs count; below 1: a share of the run's steps",
    )


class Scored(Cut):
    """`cut`, by a score of one's choice. For one process, and AdamW's moments in floating point.

    All layers compete by the score, as singular values do in `cut`, and by the same budget.
    """

    name = "scored"
    config_class = ScoredConfig
    config: ScoredConfig

    def __init__(self, config: ScoredConfig) -> None:
        super().__init__(config)
        self._inputs: dict[str, Tensor] = {}  # sums of (A x)(A x)^T over the tokens seen, (r, r)
        self._next = 0  # number of the step whose inputs are seen next

    def begin(self, layers: Layers, *, total_steps: int) -> None:
        """Compute the step of the cut, and look at the inputs of the steps before it."""
        super().begin(layers, total_steps=total_steps)
        first = self._begun() - steps_of(self.config.seen, total_steps)
        self._next = 0
        if self.config.score == "activation" and not self._inputs:
            for path, layer in layers.items():
                self._inputs[path] = layer.A.new_zeros(layer.rank, layer.rank, dtype=torch.float64)
                layer.register_forward_pre_hook(self._seeing(path, max(first, 0)))

    def _seeing(self, path: str, first: int) -> Any:
        def see(layer: LowRankLinear, args: tuple[Tensor, ...]) -> None:
            if layer.training and torch.is_grad_enabled() and first <= self._next < self._begun():
                with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
                    h = args[0].flatten(0, -2).to(layer.A.dtype) @ layer.A.T
                    self._inputs[path] += (h.T @ h).double()

        return see

    @torch.no_grad()
    def after_step(self, layers: Layers, info: StepInfo) -> None:
        """Cut if due."""
        self._next = info.step + 1
        if self._record is not None or info.step + 1 < self._begun():
            return
        if info.optimizer_state is None:
            raise MethodError("scored: StepInfo lacks optimizer_state: its moments are the scores")
        bases, values = {}, {}
        for path, layer in layers.items():
            bases[path], values[path] = self._scored(path, layer, info.optimizer_state)
        ranks = self._ranks(layers, values)
        for path, layer in layers.items():
            turn(layer, bases[path], ranks[path], info.optimizer_state)
        self._left = [min(ranks[path], int(s.count_nonzero())) for path, s in values.items()]
        squared = {path: basis.S.square() for path, basis in bases.items()}
        kept = sum(float(s[: ranks[path]].sum()) for path, s in squared.items())
        whole = sum(float(s.sum()) for s in squared.values())
        self._record = CutRecord(info.step + 1, sum(self._left), round(kept / (whole or 1), 9))

    def _scored(
        self, path: str, layer: LowRankLinear, state: Mapping[Tensor, dict[str, Any]]
    ) -> tuple[SingularBasis, Tensor]:
        """Return a basis and the score of each component, descending; its square is its worth."""
        score, scaling = self.config.score, layer.scaling
        if score == "activation":
            basis, values = weighted_basis(layer, self._inputs[path])
            return basis, scaling * values.cpu()
        basis = singular_basis(layer)
        if score == "singular":
            return basis, scaling * basis.S.cpu()
        name, power = ("exp_avg", 1) if score == "gradient" else ("exp_avg_sq", 2)
        turned = (
            basis.turned(kind, state[p][name].double(), power) * values**power
            for kind, p, values in (("A", layer.A, basis.A), ("B", layer.B, basis.B))
        )
        of_a, of_b = turned
        worth = (of_a.sum(dim=1) + of_b.sum(dim=0)).abs()
        order = worth.argsort(descending=True, stable=True)
        return ordered(basis, order), worth[order].sqrt().cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the cut, and the sums over the inputs."""
        seen = {_INPUTS + path: sums for path, sums in self._inputs.items()}
        return super().state_dict() | {"next": torch.tensor(self._next)} | seen

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state returned by `state_dict`; an empty one (LoRA's) means no cut yet."""
        super().load_state_dict(state)
        if state:
            self._next = int(state["next"])
            for path, sums in self._inputs.items():
                sums.copy_(state[_INPUTS + path])


@torch.no_grad()
def weighted_basis(layer: LowRankLinear, inputs: Tensor) -> tuple[SingularBasis, Tensor]:
    """Return the basis in which `||dW X||` loses least by leaving out the last components.

    With B = Q R and `inputs` = sum (A x)(A x)^T = L L^T, the squared norm of dW X is that of R L.
    Its singular values U S V^T are the scores; A' = S^-1/2 U^T R A and B' = Q U S^1/2.

    Returns:
        The basis, each component with factors of equal norm, and S, descending.
    """
    a, b = layer.A.double(), layer.B.double()
    q, r = torch.linalg.qr(b)
    squares, vectors = torch.linalg.eigh(inputs.to(a))
    root_of_inputs = vectors * squares.clamp(min=0).sqrt()
    u, s, vt = torch.linalg.svd(r @ root_of_inputs, full_matrices=False)
    s = s.masked_fill(s <= len(a) * torch.finfo(s.dtype).eps * s[:1], 0)
    root = s.sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    A, B = inverse[:, None] * (u.T @ r @ a), (q @ u) * root
    turn_a, turn_b = inverse[:, None] * (vt @ root_of_inputs.T), (r.T @ u) * inverse
    # AdamW moves all entries alike, so the factors of a component are made equally large
    norms = A.norm(dim=1), B.norm(dim=0)
    even = torch.where(s > 0, (norms[1] / norms[0]).sqrt(), 1.0)
    A, turn_a, B, turn_b = even[:, None] * A, turn_a / even[:, None], B / even, turn_b * even
    missing = len(a) - len(s)  # in a layer with fewer outputs than components
    A, turn_a = (pad(rows, (0, 0, 0, missing)) for rows in (A, turn_a))
    B, turn_b, S, s = (pad(t, (0, missing)) for t in (B, turn_b, norms[0] * norms[1], s))
    return SingularBasis(A, B, S, turn_a, turn_b), s


def ordered(basis: SingularBasis, order: Tensor) -> SingularBasis:
    """Return the basis with its components in another order."""
    return replace(
        basis,
        A=basis.A[order],
        B=basis.B[:, order],
        S=basis.S[order],
        turn_a=basis.turn_a[order],
        turn_b=basis.turn_b[:, order],
    )
