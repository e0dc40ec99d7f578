"""The loss of a frozen linear head, with its gradient computed in the forward pass.

A frozen head needs no gradient of its weight. The backward pass then needs only the gradient of the
head's input, which is as wide as a hidden state and not as the vocabulary. It is computed in the
forward pass, chunk by chunk, so no logits are stored and none are computed twice: two products with
the head's weight, as many as with all logits at once. This is the fused linear cross-entropy of
Liger (https://arxiv.org/abs/2410.10989, section 3.2), without a custom kernel.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from methods.fused import no_autocast
from methods.products import product
from methods.torch_internals import has_hooks


def is_frozen_linear(head: nn.Module, *, own_hooks: int = 0) -> TypeGuard[nn.Linear]:
    """Return True if a head is a plain, frozen linear layer: x W^T + b and nothing else.

    Args:
        own_hooks: number of hooks on the head that are permitted.
    """
    if type(head) is not nn.Linear or "forward" in head.__dict__ or has_hooks(head, own_hooks):
        return False
    parts = [head.weight] if head.bias is None else [head.weight, head.bias]
    return all(type(part) is nn.Parameter and not part.requires_grad for part in parts)


def frozen_head_losses(head: nn.Linear, hidden: Tensor, labels: Tensor, places: int) -> Tensor:
    """Return the cross-entropy (n,) of a frozen head's logits, computed in float32 or wider.

    Args:
        head: must pass `is_frozen_linear`.
        hidden: (n, features).
        labels: (n,), token ids.
        places: number of rows whose logits are in memory at a time.
    """
    device, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with no_autocast(device):
        weight, bias = head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
        losses: Tensor = _FrozenHead.apply(hidden, weight, bias, labels, places)  # type: ignore[no-untyped-call]
    return losses


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, places: int
    ) -> Tensor:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact, parts = torch.promote_types(weight.dtype, torch.float32), []
        for start in range(0, len(hidden), places):
            chunk = slice(start, start + places)
            label = labels[chunk, None]
            logits = product(hidden[chunk].to(weight.dtype), weight, bias)
            log_probs = logits.log_softmax(dim=1, dtype=exact)
            parts.append(-log_probs.gather(1, label).squeeze(1))
            if gradient is not None:
                minus_one = log_probs.new_full(label.shape, -1.0)
                # d loss of a place / d its logits = softmax - one_hot(label); in place, for memory
                delta = log_probs.exp_().scatter_add_(1, label, minus_one)
                gradient[chunk] = product(delta.to(weight.dtype), weight.t())
        ctx.save_for_backward(gradient)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * g[:, None].to(gradient.dtype), None, None, None, None
