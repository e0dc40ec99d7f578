"""The models and adapters of all cases, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.directory import Adapter, write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base
from tests.sora_cli.bad_input.runner import Case, check


@pytest.fixture
def checked(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[[Case], object]:
    """Checks a case in a directory of its own."""
    return lambda case: check(case, tmp_path, models, monkeypatch, capfd)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the model "base" and an adapter for it."""
    folder = tmp_path_factory.mktemp("models")
    save_base(tiny_bert(num_labels=2), folder / "base")
    g = torch.Generator().manual_seed(0)
    path = "bert.encoder.layer.0.attention.self.query"
    adapter = Adapter(
        layers={
            path: LowRankFactors(torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))
        },
        head={"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2)},
        head_modules=("classifier",),
        task_type="SEQ_CLS",
        base=BaseReference("models/base", "models/base"),
        meta=AdapterMeta(labels=("0", "1"), num_labels=2),
    )
    write_adapter(folder / "adapter", adapter)
    return folder
