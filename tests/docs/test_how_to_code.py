"""Train the method of docs/how-to/your-own-method.md, with more checks than the page has."""

from __future__ import annotations

from pathlib import Path

import pytest

from methods import registry
from sora_cli.app import run
from sora_cli.report import read_report
from tests.docs.pages import DOCS, blocks
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe
from tests.present import present

PAGE = DOCS / "how-to" / "your-own-method.md"


def test_method_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    text = next(block.text for block in blocks(PAGE) if block.language == "python")
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
    report = present(read_report(tmp_path / "out"))
    end = sum(module.end for module in report.ranks.values())
    assert 0 < end < sum(module.start for module in report.ranks.values())
