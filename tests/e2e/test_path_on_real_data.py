"""A short path on real data and a real pretrained model, with the packaged recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.experiments.path.record import read_path
from tests.present import present
from tests.shared_files import ROOT, glue_folder

SHORT = [
    "data.max_train_rows=48",
    "data.max_validation_rows=24",
    "data.max_length=48",
    "training.batch_size=16",
    "training.epochs=1",
    "path.epochs=1",
    "path.memorisation_rows=16",
    "path.schedule.stop=0.1",
    "path.schedule.num=3",
]


@pytest.mark.long
@pytest.mark.parametrize("task", ["stsb", "sst2"])
def test_path_then_pick(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "path"
    recipe = ROOT / "recipes" / "path" / f"{task}-minilm.yaml"
    words = [f"data.path={glue_folder()}", *SHORT, f"output.dir={out}"]
    assert run(["path", str(recipe), *words, "--controls"]) == 0
    report = present(read_path(out))
    live = [stage.live for stage in report.stages]
    assert live[0] == 288
    assert live[0] > live[1] > live[2]
    assert report.choice == "selection"

    capsys.readouterr()
    picked = tmp_path / "picked"
    limit = str(report.stages[1].parameters)
    assert run(["pick", str(out), "--max-params", limit, "-o", str(picked), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert read_adapter(picked).parameters == facts["parameters"] <= int(limit)
