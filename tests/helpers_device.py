"""Another answer to the one question for the device."""

from __future__ import annotations

import pytest
import torch


def computing_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch name this accelerator, there or not; "cpu": none."""
    device = None if kind == "cpu" else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
