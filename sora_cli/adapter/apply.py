"""A stored adapter, put back onto its base model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from methods.base import LowRankLinear
from methods.factors import LowRankFactors
from methods.init import factor_options, linear_shape
from methods.inject import replace
from sora_cli.adapter.directory import Adapter
from sora_cli.core.errors import SoraError


@torch.no_grad()
def apply_adapter(model: nn.Module, adapter: Adapter) -> dict[str, LowRankLinear]:
    """Wrap the adapter's layers in the model and load its head, in place.

    Raises:
        SoraError: the model lacks a module or parameter of the adapter, or its shape differs.
    """
    layers = {}
    for path, factors in adapter.layers.items():
        linear = linear_of(model, path, factors)
        options = factor_options(linear)
        A, B = factors.A.to(**options), factors.B.to(**options)
        layers[path] = LowRankLinear(linear, A, B, scaling=1.0)
        replace(model, path, layers[path])
    load_head(model, adapter.head)
    return layers


def load_head(model: nn.Module, head: Mapping[str, Tensor], *, what: str = "adapter") -> None:
    """Load the tensors stored in full into the model.

    Args:
        what: holds them, for errors.

    Raises:
        SoraError: no such parameter, another shape, or one tied to a weight that stays.
    """
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    names = names_by_parameter(model)
    for name, tensor in head.items():
        target = state.get(name)
        if target is None or target.shape != tensor.shape:
            there = "no such parameter" if target is None else f"{tuple(target.shape)}"
            raise SoraError(
                f"the {what}'s '{name}' {tuple(tensor.shape)} does not fit the base: {there}"
            )
        for other in names.get(id(target), []):
            if other not in head or not torch.equal(head[other], tensor):
                raise SoraError(f"'{name}' is trained in full but shares its weight with '{other}'")
        target.copy_(tensor)


def linear_of(model: nn.Module, path: str, factors: LowRankFactors) -> nn.Module:
    """Return the layer an update belongs to.

    Raises:
        SoraError: no such layer, no linear one, quantised, or of another shape.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise SoraError(
            f"the base model has no layer '{path}'",
            hint="is it the right base, and the right kind of model for the adapter's task?",
        ) from error
    shape = linear_shape(module)
    if shape is None:
        raise SoraError(
            f"'{path}' of the base model is not a linear layer but {type(module).__name__}"
        )
    wanted = (factors.A.shape[1], factors.B.shape[0])
    if shape != wanted:
        raise SoraError(f"'{path}' maps {shape[0]} to {shape[1]}, the adapter's "
                        f"factors map {wanted[0]} to {wanted[1]}")  # fmt: skip
    return module


def names_by_parameter(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter by its identity: several for tied ones."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names
