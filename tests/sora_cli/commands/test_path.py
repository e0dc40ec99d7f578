"""`sora path` and `sora pick`, end to end on a tiny model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from methods import registry
from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.experiments.path.record import PathReport, read_path
from sora_cli.experiments.path.stages import Stages
from sora_cli.report import read_report
from tests.helpers_errors import refused
from tests.helpers_families import FAMILIES
from tests.matrix import rest_is_long
from tests.present import present
from tests.sora_cli.experiments.path.support import THRESHOLDS, path_recipe, train_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("path")


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    return path_recipe(folder)


@pytest.fixture(scope="module")
def report(recipe: Path) -> PathReport:
    return train_path(recipe, "--controls")


def _hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob(pattern))
    }


def test_record(report: PathReport) -> None:
    assert (report.status, report.vary, report.main_metric) == (
        "completed",
        "method.threshold",
        "accuracy",
    )
    assert report.rows == {"train-subset": 16, "validation": 24}
    assert (report.choice, report.generalisation) == ("validation", "validation")
    assert [s.value for s in report.stages] == THRESHOLDS
    assert [s.steps for s in report.stages] == [12, 6, 6, 6]
    live = [s.live for s in report.stages]
    assert live[0] == report.stages[0].total
    assert live == sorted(live, reverse=True)
    assert live[-1] < live[0]
    for stage in report.stages:
        assert stage.live == sum(len(indices) for indices in stage.alive.values())
        for split in report.rows:
            first = report.score(report.stages[0], split)
            assert stage.relative[split] == pytest.approx(report.score(stage, split) / first)


def test_energy_and_norm(report: PathReport) -> None:
    assert report.stages[0].energy_removed is None
    removed = [s.energy_removed for s in report.stages[1:]]
    assert all(e is not None and 0 <= e <= 1 for e in removed)
    died = [a.live - b.live for a, b in zip(report.stages, report.stages[1:], strict=False)]
    assert [e == 0 for e in removed] == [n == 0 for n in died]


def test_every_stage_is_a_run_with_its_own_adapter(report: PathReport, folder: Path) -> None:
    for stage in report.stages:
        directory = folder / "out" / stage.directory
        adapter = read_adapter(directory)
        assert sum(adapter.ranks().values()) == stage.live
        assert adapter.meta.method_config["threshold"] == stage.value
        assert adapter.parameters == stage.parameters or stage.live == 0
        norm = sum(f.norm() ** 2 for f in adapter.layers.values()) ** 0.5
        assert norm == pytest.approx(stage.norm, rel=1e-5)
        own = present(read_report(directory))
        assert own.status == "completed"
        assert own.recipe["method"]["threshold"] == stage.value
        assert own.metrics == stage.metrics
        assert len(own.live_components) == stage.steps
        assert own.live_components[-1] == stage.live
        died = own.method_details["last_died"]
        dead_now = {(p, i) for p, m in own.ranks.items() for i in range(m.start)
                    if i not in stage.alive[p]}  # fmt: skip
        before = report.stages[max(stage.index - 1, 0)].alive
        newly = {(p, i) for p, i in dead_now if i in before[p]}
        assert {(p, i) for p, i in newly if died[p][i] is None} == set()


def test_scores_again_from_files_alone(
    report: PathReport, recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in report.stages:
        target = str(folder / "out" / stage.directory)
        capsys.readouterr()
        assert run(["eval", target, "--recipe", str(recipe), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        expected = stage.metrics["validation"]
        assert scores["validation"]["accuracy"] == expected["accuracy"]
        assert scores["validation"]["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_stage_adapters_load_in_peft(report: PathReport, folder: Path) -> None:
    ids = torch.randint(4, 20, (5, 7), generator=torch.Generator().manual_seed(0))
    for stage in report.stages:
        base, ours = (
            AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=2)
            for _ in range(2)
        )
        directory = folder / "out" / stage.directory / "adapter"
        theirs = PeftModel.from_pretrained(base, directory).eval()
        apply_adapter(ours, read_adapter(directory))
        with torch.no_grad():
            difference = theirs(ids).logits - ours.eval()(ids).logits
        assert difference.abs().max() <= 1e-6


def test_controls(report: PathReport) -> None:
    controls = present(report.controls)
    assert [p.stage for p in controls.points] == [1, 2, 3]
    first = report.stages[0]
    for point, stage in zip(controls.points, report.stages[1:], strict=True):
        assert point.removed == first.live - stage.live
        drawn = len(point.scores["chance"])
        assert drawn == (controls.draws if point.removed else 1)
        for rule, scores in point.scores.items():
            mean = sum(scores) / len(scores)
            expected = mean / report.score(first, "validation")
            assert point.relative[rule] == pytest.approx(expected)
    assert set(controls.gap) == set(controls.rules)
    assert set(controls.falls_at) == {*controls.rules, "path"}
    assert "closest to the path is removal by" in controls.verdict


def test_a_method_that_turns_the_basis(tmp_path: Path) -> None:
    """Component i of one stage is another in the next: nothing is said by their numbers."""
    method = {"name": "cut", "r_max": 4, "cut_at": 4}
    path = {"vary": "method.target_r", "schedule": {"kind": "list", "values": [3, 1, 0.5]}}
    report = train_path(path_recipe(tmp_path, method=method, path=path), "--controls")
    assert [stage.live for stage in report.stages] == [36, 12, 6]
    assert [stage.total for stage in report.stages] == [48] * 3
    assert [stage.energy_removed for stage in report.stages] == [None] * 3
    for stage in report.stages:
        adapter = read_adapter(tmp_path / "out" / stage.directory)
        assert sum(adapter.ranks().values()) == stage.live
        own = present(read_report(tmp_path / "out" / stage.directory))
        assert own.method_details["cut"]["components"] == stage.live
    assert report.controls is not None
    assert list(report.controls.rules) == ["smallest norm", "chance"]
    assert [p.removed for p in report.controls.points] == [24, 30]
    assert (tmp_path / "out" / "path.png").is_file()


def test_picture_and_tables(
    report: PathReport, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (folder / "out" / "path.png").read_bytes()[:4] == b"\x89PNG"
    assert report.controls is not None
    assert run(["pick", str(folder / "out"), "--keep", "0.5"]) == 0
    out = capsys.readouterr().out
    chosen = [line for line in out.splitlines() if line.strip().startswith("> ")]
    assert len(chosen) == 1
    index = int(chosen[0].split()[1])
    assert f"stage {index}: {folder / 'out' / report.stages[index].directory}/adapter" in out


def test_pick_copies_the_adapter(
    report: PathReport, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.status == "completed"
    to = str(tmp_path / "picked")
    words = ["pick", str(folder / "out"), "--max-params", "1000000", "-o", to]
    assert run([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert _hashes(Path(to), "*") == _hashes(Path(facts["adapter"]), "*")
    refused(capsys, *words)
    assert run([*words, "--force"]) == 0


def test_only_what_is_needed_later_is_kept(report: PathReport, folder: Path) -> None:
    last = report.stages[-1].directory
    states = sorted(p.parent.name for p in (folder / "out").rglob("state.safetensors"))
    assert states == ["00", Path(last).name]


def test_a_finished_path_is_not_trained_again(
    report: PathReport, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.status == "completed"
    refused(capsys, "path", recipe)
    refused(capsys, "path", str(recipe), "training.batch_size=4")


def test_a_path_that_stopped_after_its_last_stage_is_finished_by_the_same_command(
    report: PathReport, recipe: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    stopped = json.loads((out / "path.json").read_text())
    (out / "path.json").write_text(json.dumps(stopped | {"status": "interrupted"}))
    (out / "path.png").unlink()
    again = train_path(recipe, out=out)
    assert (again.status, again.stages) == ("completed", report.stages)
    assert (out / "path.png").is_file()


class _StopError(Exception):
    pass


@pytest.mark.parametrize("signal", rest_is_long([KeyboardInterrupt, _StopError]))
def test_an_interrupted_path_goes_on_bit_equal(
    report: PathReport,
    recipe: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signal: type[BaseException],
) -> None:
    train_stage = Stages.run

    def stopping(self: Any, plan: Any) -> Any:
        stage = train_stage(self, plan)
        if plan.index == 2:  # all files of stage 2 are there, but it is not on record
            raise signal
        return stage

    monkeypatch.setattr(Stages, "run", stopping)
    out = tmp_path / "again"
    assert run(["path", str(recipe), f"output.dir={out}", "--force"]) in {1, 130}
    kept = "2 of 4 stages are kept; the same command, without --force, continues from there"
    assert kept in capsys.readouterr().err
    halted = present(read_path(out))
    assert halted.status == ("interrupted" if signal is KeyboardInterrupt else "failed")
    assert len(halted.stages) == 2

    monkeypatch.setattr(Stages, "run", train_stage)
    capsys.readouterr()
    resumed = train_path(recipe, "--json", out=out)
    printed = capsys.readouterr()
    assert "continuing in" in printed.err
    assert json.loads(printed.out) == json.loads((out / "path.json").read_text())
    assert resumed.status == "completed"
    assert [s.live for s in resumed.stages] == [s.live for s in report.stages]
    assert [s.metrics for s in resumed.stages] == [s.metrics for s in report.stages]
    assert [s.energy_removed for s in resumed.stages] == [s.energy_removed for s in report.stages]
    weights = "adapter_model.safetensors"
    assert _hashes(out, weights) == _hashes(folder / "out", weights)

    assert resumed.controls is None  # asked for later
    assert train_path(recipe, "--controls", out=out).controls == report.controls


def test_a_lost_state_is_said(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    train_stage = Stages.run

    def stopping(self: Any, plan: Any) -> Any:
        if plan.index == 1:
            raise KeyboardInterrupt
        return train_stage(self, plan)

    monkeypatch.setattr(Stages, "run", stopping)
    out = tmp_path / "out"
    assert run(["path", str(recipe), f"output.dir={out}"]) == 130
    monkeypatch.setattr(Stages, "run", train_stage)
    (out / "stages" / "00" / "state.safetensors").write_bytes(b"torn")
    refused(capsys, "path", str(recipe), f"output.dir={out}")
    assert train_path(recipe, "--force", out=out).status == "completed"


def test_dry_run_shows_the_stages_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nothing"
    assert run(["path", str(recipe), "--dry-run", f"output.dir={out}"]) == 0
    text = capsys.readouterr().out
    assert "stages of tiny; the above is stage 0" in text
    rows = [line.split() for line in text.splitlines() if line.endswith(" steps")]
    assert [row[:4] for row in rows[-3:]] == [[str(i), str(v), "6", "steps"]
                                              for i, v in enumerate(THRESHOLDS)][1:]  # fmt: skip
    assert not out.exists()


def test_train_says_that_it_trains_one_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["training.max_steps=1", f"output.dir={tmp_path / 'one'}"]
    assert run(["train", str(recipe), *words]) == 0
    assert f"to train the recipe's path: sora path {recipe}" in capsys.readouterr().err


def test_adalora_along_shrinking_budgets(tmp_path: Path) -> None:
    recipe = path_recipe(
        tmp_path,
        values=[3, 2, 1],
        path={"vary": "method.target_r"},
    )
    report = train_path(recipe, "method.name=adalora", "method.init_r=4", "method.target_r=3")
    modules = len(report.stages[0].alive)
    assert [s.live for s in report.stages] == [3 * modules, 2 * modules, modules]
    assert report.stages[0].total == 4 * modules


def test_a_plug_ins_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})  # for this test only
    code = tmp_path / "hard.py"
    code.write_text(_HARD, encoding="utf-8")
    recipe = path_recipe(
        tmp_path, values=[0.0, 0.5, 1.0], path={"vary": "method.cut"}, method={"threshold": None}
    )
    words = ["--code", str(code), "method.name=hard-path", "method.cut=0.0"]
    report = train_path(recipe, *words)
    live = [s.live for s in report.stages]
    assert live[0] > live[1] > live[2] >= 0


_HARD = '''
import torch
from pydantic import Field
from methods.base import AdapterMethod, LowRankLinear
from methods.configs import MethodConfig
from methods.init import factor_options, kaiming_factors


class HardConfig(MethodConfig):
    adapts_rank = True
    variable_options = ("cut",)

    r_max: int = Field(4, ge=1, description="components")
    cut: float = Field(0.05, ge=0, description="gates smaller than this become zero")


class HardPath(AdapterMethod):
    """Gates under a hard threshold."""

    name = "hard-path"
    config_class = HardConfig

    def wrap(self, linear, *, generator):
        A, B = kaiming_factors(linear, self.config.r_max, generator)
        d = torch.randn(self.config.r_max, generator=generator).to(**factor_options(linear))
        return LowRankLinear(linear, A, B, d, scaling=self.config.alpha / self.config.r_max)

    @torch.no_grad()
    def after_step(self, layers, info):
        for layer in layers.values():
            layer.d.masked_fill_(layer.d.abs() < self.config.cut, 0.0)
'''


@pytest.mark.long
@pytest.mark.parametrize("kind", ["question-answering", "causal-lm, packed", "embedding"])
def test_training_rows_are_scored_as_rows_that_are_scored(tmp_path: Path, kind: str) -> None:
    """In training these are windows, packed, or pairs."""
    recipe = FAMILIES[kind](tmp_path)
    block = {"vary": "method.threshold", "epochs": 1, "memorisation_rows": 6,
             "schedule": {"kind": "linear", "start": 0, "stop": 0.02, "num": 2}}  # fmt: skip
    words = ["path", str(recipe), f"path={json.dumps(block)}", f"output.dir={tmp_path / 'path'}"]
    assert run(words) == 0
    found = json.loads((tmp_path / "path" / "path.json").read_text())
    assert [set(stage["metrics"]) for stage in found["stages"]] == [
        {"train-subset", "validation"}
    ] * 2
