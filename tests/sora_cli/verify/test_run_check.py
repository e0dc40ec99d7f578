"""The check at a run's end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.report import RunReport
from sora_cli.verify import run_check


@pytest.mark.parametrize(("found", "code"), [(OK, OK), (FAILED, FAILED), (NO_VERDICT, OK)])
def test_a_run_fails_only_where_its_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: int, code: int
) -> None:
    model = SimpleNamespace(trust_remote_code=False, quantise=None, attention=None)
    training = SimpleNamespace(precision="fp32", batch_size=1)
    loaded: Any = SimpleNamespace(
        recipe=SimpleNamespace(model=model, training=training), output_dir=tmp_path
    )
    ready: Any = SimpleNamespace(baseline=None, base=SimpleNamespace(model=nn.Linear(1, 1)))
    monkeypatch.setattr(run_check, "self_check", lambda *_, **__: found)
    assert run_check.check_run(loaded, ready, RunReport(name="", recipe={})) == code
