"""What tests of methods share: the contract's small net, data and loop, and layers of one input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from methods.contract.net import LR, Run, generator, regression_data, small_net, start
from methods.inject import adapted_layers
from methods.siblings import same_inputs, share_inputs

__all__ = ["LR", "Run", "generator", "regression_data", "small_net", "start", "told"]


def told(model: nn.Module, *args: Any, **batch: Any) -> list[list[str]]:
    """Let a model's layers be computed together; return which."""
    layers = adapted_layers(model)
    with torch.no_grad(), same_inputs(model, layers) as groups:
        model(*args, **batch)
    share_inputs(layers, groups)
    return groups
