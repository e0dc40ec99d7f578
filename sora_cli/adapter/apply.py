"""Put a stored adapter back onto its base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from methods.base import LowRankLinear
from methods.init import factor_options
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.in_model import linear_of
from sora_cli.adapter.parts.kinds import by_kind
from sora_cli.adapter.todays_names import todays_layers, todays_paths


@torch.no_grad()
def apply_adapter(
    model: nn.Module, adapter: Adapter, *, fold: bool = False
) -> dict[str, LowRankLinear]:
    """Wrap the adapter's layers in the model and load its head, in place.

    Only linear layers without DoRA's magnitudes can be wrapped. For all other parts of an adapter
    `fold` is needed. Fused experts are changed in place.

    Args:
        fold: add the update into the weight itself where a layer is not linear, is rescaled by
            DoRA, or has rows of known tokens trained in full. Such a layer is not returned, and no
            longer shares its weight with others.

    Returns:
        The wrapped layers, by the names that the adapter has for them.
    """
    prepare(model, adapter)  # first: wrapped layers have their own parameters elsewhere
    today, layers = todays_layers(model, adapter.parts), {}
    for part in adapter.parts:
        layer = part.apply(model, today.get(part.path, part.path), fold=fold)
        if layer is not None:
            layers[part.path] = layer
    return layers


@torch.no_grad()
def prepare(model: nn.Module, adapter: Adapter) -> None:
    """Give a model all that an adapter holds beside its layers, such as its head, in place."""
    for kind, parts in by_kind(adapter.parts):
        if parts:
            kind.prepare(model, parts)


@contextmanager
def added(model: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Add an adapter's update to the layers of a model inside the `with` block, for scoring.

    The model may have adapters of its own, and stays as it is. The adapter must be one of linear
    layers, without DoRA's magnitudes and without parts stored in full.
    """
    today = todays_paths(model, adapter.layers)
    with ExitStack() as hooks:
        for path, factors in adapter.layers.items():
            sides = factors.B.shape[0], factors.A.shape[1]
            options = factor_options(linear_of(model, today[path], sides))
            layer = model.get_submodule(today[path])
            A, B = factors.A.to(**options), factors.B.to(**options)
            handle = layer.register_forward_hook(partial(_with_update, A, B))
            hooks.callback(handle.remove)
        yield


def _with_update(A: Tensor, B: Tensor, _layer: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out + linear(linear(args[0].to(A.dtype), A), B).to(out.dtype)
