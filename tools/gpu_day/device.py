"""Print the device that computes as JSON; a process of its own, so that it frees the GPU."""

from __future__ import annotations

import json
from typing import Any

import torch

from sora_cli.core.device import device_module, device_type, is_accelerated


def described() -> dict[str, Any]:
    """Describe the device: its type, and an accelerator's name and bytes."""
    facts: dict[str, Any] = {"type": device_type(), "torch": torch.__version__}
    if is_accelerated():
        module = device_module()
        facts |= {"name": module.get_device_name(), "bytes": module.mem_get_info()[1]}
        facts |= {"cuda": torch.version.cuda}
    return facts


if __name__ == "__main__":
    print(json.dumps(described()))  # noqa: T201
