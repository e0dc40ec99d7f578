"""The singular basis of a layer's update; turns the factors and their moments to that basis.

`dW = scaling * B A` is the same for every invertible T: `B A = (B T^-1)(T A)`. In the singular
basis, with `B A = U S V^T`, the factors are balanced: `A' = S^1/2 V^T`, `B' = U S^1/2`. Component i
then is the i-th singular triple, so the best approximation of a lower rank leaves out the last
components (Eckart-Young).

An optimiser's moments belong to the entries of the old factors. From `A' = T A`, `B' = B T^-1`
follow the gradients `G_A' = T^-T G_A` and `G_B' = G_B T^T`. First moments are linear in the
gradients, so they turn with the same matrices, exactly. Second moments turn with the squared
entries of these matrices, which is exact only for gradients with uncorrelated entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.errors import MethodError
from methods.layer import LowRankLinear
from methods.sharding import agreed, like, local, whole

# torch's names of optimiser state: AdamW's moments, SGD's momentum, AMSGrad's maximum
_POWERS = {"exp_avg": 1, "momentum_buffer": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}


@dataclass(frozen=True)
class SingularBasis:
    """A layer's factors in the singular basis, scaling not included.

    Attributes:
        A: (r, in). B: (out, r). S: (r,) singular values of B A, descending. All float64;
            components beyond the rank of the update are zero.
        turn_a: (r, r), T^-T: `turn_a @ G_A` is the gradient of A'.
        turn_b: (r, r), T^T: `G_B @ turn_b` is the gradient of B'.
    """

    A: Tensor
    B: Tensor
    S: Tensor
    turn_a: Tensor
    turn_b: Tensor

    def turned(self, kind: str, entries: Tensor, power: int) -> Tensor:
        """Turn gradients of a factor ("A", "B"), or with power 2 their squares, to this basis."""
        if kind == "A":
            return self.turn_a**power @ entries
        return entries @ self.turn_b**power


@torch.no_grad()
def singular_basis(layer: LowRankLinear) -> SingularBasis:
    """Compute a layer's singular basis, the same on all processes; the layer must have no gates.

    Gates scale the components of the basis in which they were trained, and mean nothing in another.
    """
    if layer.d is not None:
        raise MethodError("a layer with gates cannot change its basis: its gates would not fit")
    a, b = whole(layer.A).double(), whole(layer.B).double()
    r = a.shape[0]
    q_b, r_b = torch.linalg.qr(b)  # (out, k1), (k1, r)
    q_a, r_a = torch.linalg.qr(a.T)  # (in, k2), (k2, r)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)  # of (k1, k2), k = min
    # dead components leave singular values of rounding noise, whose vectors mean nothing
    rounding = r * torch.finfo(s.dtype).eps * s[:1]
    s = s.masked_fill(s <= rounding, 0)
    root = s.sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    A, B = a.new_zeros(a.shape), b.new_zeros(b.shape)
    S, turn_a, turn_b = a.new_zeros(r), a.new_zeros(r, r), a.new_zeros(r, r)
    k = s.numel()
    A[:k], B[:, :k], S[:k] = root[:, None] * (vt @ q_a.T), (q_b @ u) * root, s
    turn_a[:k] = inverse[:, None] * (vt @ r_a)  # T^-T = (S^-1/2 V^T R_A), as B T^-1 = U S^1/2
    turn_b[:, :k] = (r_b.T @ u) * inverse  # T^T, as T A = S^1/2 V^T
    # processors may differ in the signs of vectors and in the order of equal values
    return SingularBasis(*(agreed(t) for t in (A, B, S, turn_a, turn_b)))


@torch.no_grad()
def turn(
    layer: LowRankLinear, basis: SingularBasis, rank: int, state: Mapping[Tensor, dict[str, Any]]
) -> None:
    """Replace a layer's factors by the first `rank` components of the basis; zero the others.

    A component with zero factors and moments gets no gradient, so it stays zero.

    8-bit optimisers are refused: their moments are stored as codes, which cannot be turned.

    Args:
        state: the optimiser's state. Moments turn as the gradients do; other tensors of a factor's
            shape become zero.
    """
    dead = torch.arange(len(basis.S), device=basis.S.device) >= rank
    for kind, p in (("A", layer.A), ("B", layer.B)):
        gone = dead[:, None] if kind == "A" else dead
        _write(p, (basis.A if kind == "A" else basis.B).masked_fill(gone, 0))
        for name, value in state.get(p, {}).items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                if not value.is_floating_point():
                    raise MethodError(
                        f"the optimiser's '{name}' is stored as integer codes, which cannot be "
                        "turned to another basis: use an optimiser with moments in floating point"
                    )
                power = _POWERS.get(name)
                old = whole(value).double()
                new = torch.zeros_like(old) if power is None else basis.turned(kind, old, power)
                _write(value, new.masked_fill(gone, 0))


def _write(target: Tensor, value: Tensor) -> None:
    data = target.detach()
    local(data).copy_(local(like(value.to(data.dtype), data)))
