"""A stored adapter, put back onto its base model."""

from __future__ import annotations

import torch
from torch import nn

from methods.base import LowRankLinear
from methods.init import factor_options, linear_shape
from methods.inject import replace
from sora_cli.adapter import Adapter
from sora_cli.errors import SoraError


def apply_adapter(model: nn.Module, adapter: Adapter) -> dict[str, LowRankLinear]:
    """Wrap the adapter's layers in the model and load its head, in place.

    Raises:
        SoraError: the model lacks a module or parameter of the adapter, or its shape differs.
    """
    modules = dict(model.named_modules())
    layers = {}
    for path, factors in adapter.layers.items():
        linear = modules.get(path)
        shape = None if linear is None else linear_shape(linear)
        if linear is None or shape is None:
            raise SoraError(f"the base model has no linear layer '{path}'", hint=_which(adapter))
        if shape != (factors.A.shape[1], factors.B.shape[0]):
            raise SoraError(
                f"'{path}' is {shape} in the base model and "
                f"{(factors.A.shape[1], factors.B.shape[0])} in the adapter",
                hint=_which(adapter),
            )
        options = factor_options(linear)
        layer = LowRankLinear(
            linear, factors.A.to(**options), factors.B.to(**options), scaling=1.0
        )
        replace(model, path, layer)
        layers[path] = layer
    _load_head(model, adapter)
    return layers


def _load_head(model: nn.Module, adapter: Adapter) -> None:
    state = model.state_dict()
    for name, tensor in adapter.head.items():
        if name not in state or state[name].shape != tensor.shape:
            raise SoraError(
                f"the head's '{name}' {tuple(tensor.shape)} does not fit the model",
                hint=_which(adapter),
            )
        with torch.no_grad():
            state[name].copy_(tensor)  # shares memory with the model


def _which(adapter: Adapter) -> str:
    return f"the adapter was trained on {adapter.base.path}"
