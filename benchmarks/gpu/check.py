"""Check of the adapters' gradients, for every row of the table.

Our gradients are computed with every switch on, as in the timing, on a part of the row's batch.
They are compared with the plain path in float32: the same model with `y = W x + s B (d * A x)`
under torch's autograd, with unpacked weights, eager attention, no checkpointing and logits of all
tokens. In float32 the cosine must be above 0.9999. In bf16 rounding alone may exceed this bound:
there the plain path is also computed in bf16, and our error may be at most twice its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.gpu.sides import Side, sharing_copy
from benchmarks.stepping import Batch, autocast
from methods.inject import adapted_layers, replace
from methods.layer import LowRankLinear
from sora_cli.tasks.learned import LEARNED, learned_places

FAR = math.sqrt(2 * (1 - 0.9999))
"""|g - exact| / |exact| for equal norms and a cosine of 0.9999: |g - e|^2 = 2 - 2 cos."""
_LOSS = {"fp32": 1e-5, "bf16": 1e-2}  # relative
_ROWS, _TOKENS = 3, 256
_SPREAD = 0.02  # standard deviation of B during the check: with B = 0, A would have no gradient


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        cosine: of our gradients with the exact ones (float32). plain: cosine of the plain path.
        error: |ours - exact| / |exact|. allowed: the largest allowed error.
        loss: relative difference of the losses.
    """

    cosine: float
    plain: float
    error: float
    allowed: float
    loss: float
    loss_allowed: float

    @property
    def right(self) -> bool:
        """True if the errors of loss and gradients are within their bounds; False for NaN."""
        return self.error <= self.allowed and self.loss <= self.loss_allowed

    def __str__(self) -> str:
        end = "" if self.right else f" **WRONG**: error {self.error:.2g}, loss {self.loss:.2g}"
        return f"{self.cosine:.6f} ({self.plain:.6f}){end}"


class PlainBranch(nn.Module):
    """W x + b + s B (d * (A x)), with a copy of the layer's factors."""

    A: Tensor
    B: Tensor
    d: Tensor

    def __init__(self, layer: LowRankLinear) -> None:
        super().__init__()
        self.base, self.scaling = layer.base, layer.scaling
        for kind, factor in layer.named_factors():
            self.register_parameter(kind, nn.Parameter(factor.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        h = linear(x, self.A)
        h = h * self.d if "d" in self._parameters else h
        out: Tensor = self.base(x) + linear(h, self.B) * self.scaling
        return out


def check(side: Side) -> Verdict:
    """Check our side's gradients; replaces B by random numbers."""
    batch, layers = _part(side.batch), adapted_layers(side.model)
    _spread(layers)
    with side.running(), side.moving():
        ours_loss, ours = _gradients(side.model, layers, batch, side.precision)
    plain_model, branches = _plain_copy(side.model)
    plain_batch = {name: value for name, value in batch.items() if name != LEARNED}
    _, plain = _gradients(plain_model, branches, plain_batch, side.precision)
    _to_float32(plain_model)
    exact_loss, exact = _gradients(plain_model, branches, plain_batch, "fp32")
    error, cosine = _compare(ours, exact)
    plain_error, plain_cosine = _compare(plain, exact)
    return Verdict(
        cosine=cosine,
        plain=plain_cosine,
        error=error,
        allowed=FAR if side.precision == "fp32" else max(FAR, 2 * plain_error),
        loss=abs(ours_loss - exact_loss) / abs(exact_loss),
        loss_allowed=_LOSS[side.precision],
    )


def _part(batch: Batch) -> Batch:
    """Return the last rows of a batch; of a packed batch the last rows inside its row."""
    part = {name: v for name, v in batch.items() if isinstance(v, Tensor) and name != LEARNED}
    if "position_ids" in part:
        tokens = max(part["input_ids"].shape[1] // 16, 32)  # a whole number of `shapes._halves`
        part = {name: tensor[-1:, -tokens:] for name, tensor in part.items()}
    else:
        part = {name: tensor[-_ROWS:] for name, tensor in part.items()}
        tokens = min(int(part["attention_mask"].sum(dim=1).max()), _TOKENS)
        part = {name: tensor[:, :tokens] for name, tensor in part.items()}
    return {**part, LEARNED: learned_places(part["labels"]), "use_cache": False}


@torch.no_grad()
def _spread(layers: dict[str, LowRankLinear]) -> None:
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        layer.B.copy_(torch.randn(layer.B.shape, generator=generator) * _SPREAD)


def _plain_copy(model: nn.Module) -> tuple[Any, dict[str, nn.Module]]:
    plain: Any = sharing_copy(model)
    for off in ("activation_checkpointing_disable", "gradient_checkpointing_disable"):
        if hasattr(plain, off):  # the first is the newer name in transformers 5
            getattr(plain, off)()
            break
    plain.set_attn_implementation("eager")  # the definition of attention, without fused kernels
    _unpack(plain)
    branches: dict[str, nn.Module] = {}
    for path, layer in adapted_layers(plain).items():
        branches[path] = PlainBranch(layer)
        replace(plain, path, branches[path])
    return plain, branches


def _unpack(model: nn.Module) -> None:
    """Replace the layers of bitsandbytes by plain layers with dequantised weights."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    for path, packed in [*model.named_modules()]:
        if getattr(packed, "quant_state", None) is None:
            continue
        weight = dequantize_bnb_weight(packed.weight).detach()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = packed.bias
        replace(model, path, layer)


def _to_float32(model: nn.Module) -> None:
    """Convert a model to float32, in place; replaces parameters instead of changing shared ones."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and parameter.dtype != torch.float32:
                converted = nn.Parameter(parameter.detach().float(), requires_grad=False)
                setattr(module, name, known.setdefault(id(parameter), converted))


def _gradients(
    model: Any, layers: dict[str, Any], batch: Batch, precision: str
) -> tuple[float, list[Tensor]]:
    """Return the loss, and the factors' gradients in the layers' order."""
    model.train()
    model.zero_grad(set_to_none=True)
    with autocast(batch["input_ids"].device, precision):
        loss = model(**batch)["loss"]
    loss.backward()
    kinds = ("A", "B", "d")
    factors = [getattr(layer, kind, None) for layer in layers.values() for kind in kinds]
    gradients = [f.grad.float() for f in factors if f is not None]
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), gradients


def _compare(gradients: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """Return |gradients - exact| / |exact| and the cosine, over all tensors together."""
    apart = dot = own = norm = 0.0
    for one, other in zip(gradients, exact, strict=True):
        a, b = one.double(), other.double()
        apart += float((a - b).square().sum())
        dot += float((a * b).sum())
        own += float(a.square().sum())
        norm += float(b.square().sum())
    return math.sqrt(apart / norm), dot / math.sqrt(own * norm)
