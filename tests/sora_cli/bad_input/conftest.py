"""What lies on the desk of all cases, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from tests.helpers_chat import write_chat_base
from tests.helpers_models import tiny_bert
from tests.helpers_reports import write_study
from tests.helpers_runs import pair_rows, save_base, write_rows
from tests.sora_cli.bad_input.runner import FINISHED, PATH, RECIPE, SWEEP, Case, check


@pytest.fixture
def checked(
    tmp_path: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[[Case], object]:
    """Checks a case in a directory of its own."""
    return lambda case: check(case, tmp_path, desk, monkeypatch, capfd)


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory: recipes, rows, a model, an adapter, runs, and somebody's own files."""
    folder = tmp_path_factory.mktemp("desk")
    write_rows(folder / "train.jsonl", pair_rows(20))
    write_rows(folder / "validation.jsonl", pair_rows(6, seed=1))
    texts = {"r.yaml": RECIPE, "p.yaml": PATH, "s.yaml": SWEEP, "done/report.json": FINISHED,
             "mine/thesis.txt": "x", "mine.txt": "x", "old.csv": "a\n",
             "rows/train.csv": "text,label\na,0\n"}  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    write_study(folder / "study", tasks=("rte",), seeds=(0,))
    write_chat_base(folder / "chat")
    save_base(tiny_bert(num_labels=2), folder / "models" / "base")
    g = torch.Generator().manual_seed(0)
    path = "bert.encoder.layer.0.attention.self.query"
    adapter = Adapter.of(
        layers={
            path: LowRankFactors(torch.randn(2, 32, generator=g), torch.randn(32, 2, generator=g))
        },
        head={"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2)},
        head_modules=("classifier",),
        task_type="SEQ_CLS",
        base=BaseReference("models/base", "models/base"),
        meta=AdapterMeta(labels=("0", "1"), num_labels=2),
    )
    write_adapter(folder / "models" / "adapter", adapter)
    return folder
