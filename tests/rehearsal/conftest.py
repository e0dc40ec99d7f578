"""The rehearsal device, there for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.rehearsal.watch import Watch, rehearsing


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Let everything compute on the rehearsal device; the watch knows the waits in steps."""
    if torch.accelerator.is_available():
        pytest.skip("there is a real accelerator")
    with rehearsing(monkeypatch) as watch:
        yield watch
