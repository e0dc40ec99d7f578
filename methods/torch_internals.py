"""All private names of torch that this project uses; a new version of torch is adapted to here.

Last checked with torch 2.13. A test (`tests/test_architecture.py`) reports private names elsewhere.
"""

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

# private, but torch's own optimisers call them; a loop would launch a GPU kernel for every tensor
foreach_abs_ = torch._foreach_abs_
foreach_copy_ = torch._foreach_copy_
foreach_lerp_ = torch._foreach_lerp_
foreach_mul = torch._foreach_mul
foreach_norm = torch._foreach_norm
foreach_sub_ = torch._foreach_sub_


def has_hooks(module: nn.Module, own: int = 0) -> bool:
    """Return True if a module has forward or backward hooks.

    Args:
        own: number of the caller's hooks on it, which do not count.
    """
    # torch has no public way to ask for registered hooks
    forward = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return forward + len(module._backward_hooks) + len(module._backward_pre_hooks) > own


def saved(node: Any, *names: str) -> tuple[Any, ...]:
    """Return the values that an autograd node saved for its backward pass, by torch's names.

    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#saved-tensors
    """
    return tuple(getattr(node, f"_saved_{name}") for name in names)


def has_saved_tensor_hooks() -> bool:
    """Return True if hooks (checkpointing, offloading) store the tensors saved by autograd."""
    # the public context managers only set such hooks; True: also look while tracing
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias by oneDNN, in float32 on a CPU; not recorded by autograd.

    torch's own compiler calls this operation for linear layers of frozen models.
    """
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def storage_key(tensor: Tensor) -> int:
    """Return a number that identifies a tensor's storage among all living storages.

    Unlike `data_ptr`, it also differs between empty storages.
    """
    return int(tensor.untyped_storage()._cdata)


def compilations(limit: int) -> AbstractContextManager[None]:
    """Allow torch.compile `limit` compilations of one function; after that it runs uncompiled."""
    from torch._dynamo import config  # takes a second

    limits = {"recompile_limit": limit, "accumulated_recompile_limit": limit}
    patched: AbstractContextManager[None] = config.patch(limits)
    return patched


def uncompile(module: nn.Module) -> None:
    """Undo `module.compile()`."""
    module._compiled_call_impl = None


def version(tensor: Tensor) -> int:
    """Return the number of in-place changes of a tensor.

    Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#in-place-correctness-checks
    """
    return tensor._version
