"""The random-number generators of a run: torch's, numpy's and Python's, as plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sora_cli.core.device import device_module, device_type, is_accelerated

_CPU = "torch"


def torch_states() -> dict[str, Tensor]:
    """Return the states of torch's generators: the CPU's and, if present, this process's GPU's."""
    states = {_CPU: torch.get_rng_state()}
    if is_accelerated():
        states[device_type()] = device_module().get_rng_state()
    return states


def other_states() -> dict[str, Any]:
    """Return the states of numpy's legacy generator and of Python's, JSON-able."""
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = state
    version, numbers, next_gauss = random.getstate()
    return {
        "numpy": [name, keys.tolist(), position, has_gauss, gauss],
        "python": [version, list(numbers), next_gauss],
    }


def restore_torch(states: dict[str, Tensor]) -> None:
    """Set torch's generators to the states returned by `torch_states`."""
    torch.set_rng_state(states[_CPU])
    if device_type() in states:
        device_module().set_rng_state(states[device_type()])


def restore(states: dict[str, Tensor], others: dict[str, Any]) -> None:
    """Set all generators to the states returned by `torch_states` and `other_states`."""
    restore_torch(states)
    name, keys, *rest = others["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, numbers, next_gauss = others["python"]
    random.setstate((version, tuple(numbers), next_gauss))
