"""Every private name of torch that this project uses: a new version of torch is mended here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "compilations",
    "foreach_abs_",
    "foreach_copy_",
    "foreach_lerp_",
    "foreach_mul",
    "foreach_norm",
    "foreach_sub_",
    "has_hooks",
    "has_saved_tensor_hooks",
    "onednn_linear",
    "saved",
    "storage_key",
    "tree_leaves",
    "uncompile",
    "version",
]

# torch's optimisers use these, too; on a GPU a loop over the tensors is a kernel for each of them
foreach_abs_ = torch._foreach_abs_
foreach_copy_ = torch._foreach_copy_
foreach_lerp_ = torch._foreach_lerp_
foreach_mul = torch._foreach_mul
foreach_norm = torch._foreach_norm
foreach_sub_ = torch._foreach_sub_


def has_hooks(module: nn.Module, own: int = 0) -> bool:
    """Return whether anybody watches a module's forward or backward passes.

    Args:
        own: hooks there that are the caller's.
    """
    forward = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return forward + len(module._backward_hooks) + len(module._backward_pre_hooks) > own


def saved(node: Any, *names: str) -> tuple[Any, ...]:
    """Return what a node of the autograd graph has kept for its backward pass, by torch's names.

    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#saved-tensors
    """
    return tuple(getattr(node, f"_saved_{name}") for name in names)


def has_saved_tensor_hooks() -> bool:
    """Return whether somebody (checkpointing, offloading) decides how kept tensors are stored."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias by oneDNN, in float32 on a CPU; autograd does not know it.

    It is what torch's own compiler calls for layers of frozen models.
    """
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def storage_key(tensor: Tensor) -> int:
    """Return a number that tells a tensor's storage from all others that are alive."""
    return int(tensor.untyped_storage()._cdata)


def compilations(limit: int) -> AbstractContextManager[None]:
    """Let torch.compile compile one piece of code so often; past that it runs it as it is."""
    from torch._dynamo import config  # takes a second

    limits = {"recompile_limit": limit, "accumulated_recompile_limit": limit}
    patched: AbstractContextManager[None] = config.patch(limits)
    return patched


def uncompile(module: nn.Module) -> None:
    """Undo `module.compile()`."""
    module._compiled_call_impl = None


def version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place.

    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#in-place-correctness-checks
    """
    return tensor._version
