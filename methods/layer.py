"""The layer of all low-rank methods: a frozen linear layer plus a low-rank branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from methods.dropout import Dropout
from methods.errors import MethodError
from methods.factors import LowRankFactors
from methods.fused import Branch, adapted_linear
from methods.sharding import whole
from methods.torch_internals import has_hooks


class SharedInput(Protocol):
    """Layers that read the same input and are computed together (`methods.siblings`)."""

    def output(self, layer: LowRankLinear, x: Tensor) -> Tensor | None:
        """Return a layer's output (..., out) for x (..., in); None: the layer computes its own."""


@final
class LowRankLinear(nn.Module):
    """A frozen linear layer plus a scaled sum of rank-one components.

        y = base(x) + scaling * B (d * (A dropout(x)))

    Attributes:
        base: the wrapped layer, frozen: (..., in) -> (..., out).
        A: (r, in). B: (out, r). d: (r,), or None if the method has no gates.
        scaling: never changes, not even when components are removed.
        siblings: this layer and those with the same input; None: the layer is computed alone.
    """

    d: nn.Parameter | None

    def __init__(
        self,
        base: nn.Module,
        A: Tensor,
        B: Tensor,
        d: Tensor | None = None,
        *,
        scaling: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(B)
        self.d = None if d is None else nn.Parameter(d)
        self.scaling = scaling
        self.dropout = Dropout(dropout)
        self.siblings: SharedInput | None = None

    @property
    def rank(self) -> int:
        """Number of stored components, dead ones included."""
        if self.A.ndim != 2:
            raise MethodError(
                "the adapters' factors were flattened, as FSDP1 does; shard the model with "
                "torch.distributed.fsdp.fully_shard (fsdp_version 2 in accelerate)"
            )
        return self.A.shape[0]

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for models that read it (T5 reads its dtype)."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias, for models that read a layer's bias."""
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Compute y (..., out) from x (..., in)."""
        if self.siblings is not None and (y := self.siblings.output(self, x)) is not None:
            return y
        if not self.base_is_plain():  # quantised or hooked bases compute their output themselves
            return self._composed(x)
        return adapted_linear(x, [self.branch(x)])[0]

    def branch(self, x: Tensor) -> Branch:
        """Return the operands of the layer's product with x (..., in); draws the dropout mask."""
        weight = self.weight if isinstance(self.base, nn.Linear) else self.weight.t()
        scaling, dropped = self.scaling, None
        if self.dropout.active:
            scaling, dropped = scaling * self.dropout.scale(x.device), self.dropout.draw(x)
        return Branch(weight, self.bias, self.A, self.B, self.d, scaling, dropped)

    def base_is_plain(self) -> bool:
        """Return True if the base is a frozen, unhooked `x W^T + b` (or Conv1D's `x W + b`)."""
        base = self.base
        if type(base) is not nn.Linear and type(base).__name__ != "Conv1D":
            return False  # a subclass may compute something else, on packed weights, say
        return not (has_hooks(base) or "forward" in base.__dict__) and not (
            self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        )

    def _composed(self, x: Tensor) -> Tensor:
        """Compute the same with the base's own forward pass and autograd."""
        y: Tensor = self.base(x)
        h = linear(self.dropout(x).to(self.A.dtype), self.A)  # (..., r)
        h = h * (self.scaling if self.d is None else self.scaling * self.d)
        return y + linear(h, self.B).to(y.dtype)

    def named_factors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the layer's own parameters: "A", "B" and, if there are gates, "d"."""
        parameters = self._parameters  # three times faster than attributes
        for kind in ("A", "B") if parameters.get("d") is None else ("A", "B", "d"):
            factor = parameters[kind]
            assert factor is not None
            yield kind, factor

    def factors(self) -> LowRankFactors:
        """Return the update, detached, at least float32; gates and scaling are folded into B."""
        dtype = torch.promote_types(self.A.dtype, torch.float32)
        strength = torch.full((self.rank,), self.scaling, dtype=dtype, device=self.A.device)
        if self.d is not None:
            strength = strength * whole(self.d.detach()).to(dtype)
        B = whole(self.B.detach()).to(dtype) * strength  # (out, r)
        return LowRankFactors(whole(self.A.detach()).to(dtype).clone(), B)

    def extra_repr(self) -> str:
        """Show rank, scaling and gates in a printed model."""
        return f"rank={len(self.A)}, scaling={self.scaling:g}, gates={self.d is not None}"


Layers = Mapping[str, LowRankLinear]
"""Adapted layers by their module path in the model."""


def select_components(tensor: Tensor, kind: str, keep: Tensor) -> Tensor:
    """Select components from a factor, or from a tensor of its shape (a moment, an average).

    Args:
        tensor: (r, in), (out, r) or (r,), for kind "A", "B" or "d".
        keep: (r,) bool.
    """
    keep = keep.to(tensor.device)
    return (tensor[:, keep] if kind == "B" else tensor[keep]).contiguous()
