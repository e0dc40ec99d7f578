"""`training.learning_rate: auto`: settled once, and taken over by all that continues a run."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.utils
import pytest

from sora_cli.app import run
from sora_cli.core import processes
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import RateChoice, read_report
from sora_cli.run.rates import settle
from sora_cli.run.rates.settle import settle_rate
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, signal_at, train, write_recipe
from tests.present import present
from tests.sora_cli.experiments.auto.support import auto_recipe
from tests.sora_cli.experiments.path.support import path_recipe, train_path
from tests.sora_cli.run.rates.test_rule import BERT

AUTO = "training.learning_rate=auto"
CHOSEN = RateChoice(chosen=0.02, how="rule", reason="for a test")


def _recipe(**training: Any) -> Recipe:
    return Recipe(
        model={"path": "unused"},
        task={"name": "sequence-classification"},
        data={"path": "unused"},
        method={"name": "lora"},
        start={"adapter": "unused"},
        training={"learning_rate": "auto", **training},
    )


READY: Any = SimpleNamespace(base=SimpleNamespace(model=SimpleNamespace(config=BERT)))


class Chooser:
    """Finds another rate each time, and lists the numbers of rows that it was called with."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, recipe: Recipe, ready: Any) -> RateChoice:
        self.rows.append(len(ready.rows.train))
        return CHOSEN.model_copy(update={"chosen": 0.01 * len(self.rows)})


@pytest.fixture
def chooser(monkeypatch: pytest.MonkeyPatch) -> Chooser:
    made = Chooser()
    monkeypatch.setattr(settle, "by_rule", made)
    return made


def _never(*_: Any) -> RateChoice:
    raise AssertionError("a rate was looked for")


def _rate(directory: Path) -> float | None:
    report = present(read_report(directory))
    assert report.recipe["training"]["learning_rate"] == "auto"
    return None if report.learning_rate is None else report.learning_rate.chosen


def test_a_number_stays() -> None:
    plain = _recipe(learning_rate=0.5)
    assert settle_rate(plain, READY) == (plain, None)
    assert plain.training.rate == 0.5


def test_auto_is_no_number_before_it_is_settled(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="is not settled"):
        _ = _recipe().training.rate
    settled, choice = settle_rate(_recipe(), READY)
    reason = "for a model of width 768"
    assert choice == RateChoice(chosen=5.8e-4, how="rule", reason=reason)
    assert settled.training.rate == 5.8e-4
    assert capsys.readouterr().err == f"learning rate: 0.00058 (rule of thumb: {reason})\n"


@pytest.mark.parametrize(
    ("training", "options"), [({"max_steps": 0}, {}), ({}, {"dry": True}), ({}, {"stored": CHOSEN})]
)
def test_where_nothing_is_said(
    training: dict[str, Any],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "stored" in options:
        monkeypatch.setattr(settle, "by_rule", _never)
    settled, choice = settle_rate(_recipe(**training), READY, **options)
    assert choice is not None
    assert settled.training.rate == choice.chosen == (0.02 if "stored" in options else 5.8e-4)
    assert capsys.readouterr().err == ""


def test_every_process_takes_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(values: list[Any]) -> None:
        values[0] = CHOSEN

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", broadcast)
    settled, choice = settle_rate(_recipe(), READY)
    assert (settled.training.rate, choice) == (0.02, CHOSEN)


@pytest.mark.parametrize("value", ["some", "0", "-1", "nan"])
def test_bad_values(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "train", "quickstart", f"training.learning_rate={value}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a finished run by the rule, which keeps a checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    training = {"max_steps": 6, "keep_checkpoints": [3], "model_dropout": 0.1, "evaluate": "no"}
    recipe = write_recipe(folder, tiny_bert(num_labels=2), training=training)
    train(recipe, AUTO)
    return recipe


def _adapter(directory: Path) -> bytes:
    return files_of(directory / "adapter")["adapter_model.safetensors"]


def test_a_run_equals_the_run_with_the_number(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = whole.parent / "out"
    assert _rate(out) == 4e-3
    train(whole, "training.learning_rate=4e-3", f"output.dir={tmp_path}")
    assert _adapter(tmp_path) == _adapter(out)
    assert "learning rate auto: 0.004" in (out / "adapter" / "README.md").read_text()
    assert run(["inspect", str(out)]) == 0
    assert "0.004, by training.learning_rate: auto" in capsys.readouterr().out
    assert run(["list", str(out)]) == 0
    assert "learning rate auto: 0.004" in capsys.readouterr().out
    assert run(["report", str(out)]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "auto: 0.004" in page
    assert "rule of thumb: for a model of width 32" in page


def test_a_killed_run_keeps_its_rate(
    whole: Path, tmp_path: Path, chooser: Chooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [AUTO, f"output.dir={tmp_path}/out"]
    with monkeypatch.context() as patched:
        signal_at(patched, 4, signal.SIGTERM)
        assert run(["train", str(whole), "--no-verify", *words]) == 128 + signal.SIGTERM
    report = train(whole, *words, "--resume")
    assert report.learning_rate == CHOSEN.model_copy(update={"chosen": 0.01})
    assert len(chooser.rows) == 1
    train(whole, "training.learning_rate=0.01", f"output.dir={tmp_path}/plain")
    assert _adapter(tmp_path / "out") == _adapter(tmp_path / "plain")


@pytest.mark.usefixtures("chooser")
@pytest.mark.parametrize(
    ("trunk", "fork", "how"),
    [("auto", "auto", "rule"), ("0.01", "auto", "fork"), ("auto", "0.01", None)],
)
def test_a_fork_takes_the_other_runs(
    whole: Path, tmp_path: Path, trunk: str, fork: str, how: str | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    train(whole, f"training.learning_rate={trunk}", f"output.dir={tmp_path}/trunk")
    monkeypatch.setattr(settle, "by_rule", _never)
    words = [f"start.checkpoint={tmp_path}/trunk", "start.step=3", f"output.dir={tmp_path}/fork"]
    report = train(whole, *words, f"training.learning_rate={fork}")
    assert (report.learning_rate.how if report.learning_rate else None) == how
    assert _adapter(tmp_path / "fork") == _adapter(tmp_path / "trunk")
    words = ["train", str(whole), *words, "--force"]
    capsys.readouterr()
    assert run([*words, "--dry-run", f"training.learning_rate={fork}"]) == 0
    by = {
        "rule": "auto: 0.01 by the rule of thumb",
        "fork": "auto: 0.01 by the fork",
        None: "0.01  ",
    }
    assert f"learning rate        {by[how]}" in capsys.readouterr().out
    refused(capsys, *words, "training.learning_rate=0.02")


def test_a_start_that_trains_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [AUTO, f"start.adapter={whole.parent}/out", "training.max_steps=0"]
    words += ["method={name: lora, r: 4}", "training.keep_checkpoints=[]"]
    train(whole, *words, f"output.dir={tmp_path}")
    assert _rate(tmp_path) == 4e-3
    assert "learning rate:" not in capsys.readouterr().err


@pytest.mark.parametrize(("method", "rate"), [("full", 4e-4), ("head", 0.013), ("bitfit", 4e-3)])
def test_methods_without_adapters(whole: Path, tmp_path: Path, method: str, rate: float) -> None:
    train(whole, AUTO, f"method={{name: {method}}}", f"output.dir={tmp_path}")
    assert _rate(tmp_path) == rate


def test_healing_finds_a_rate_anew(whole: Path, tmp_path: Path, chooser: Chooser) -> None:
    words = ["prune", str(whole.parent / "out"), "-o", str(tmp_path / "out"), "--no-verify"]
    assert run([*words, "--mean-rank", "1", "--heal", "2"]) == 0
    assert (_rate(tmp_path / "out"), len(chooser.rows)) == (0.01, 1)


def test_the_stages_of_a_path_take_the_first_ones(
    tmp_path: Path, chooser: Chooser, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = path_recipe(tmp_path, values=[0, 0.02])
    report = train_path(recipe, AUTO)
    assert report.learning_rate is not None
    assert report.learning_rate.chosen == 0.01
    assert [_rate(tmp_path / "out" / "stages" / stage) for stage in ("00", "01")] == [0.01, 0.01]
    assert len(chooser.rows) == 1
    assert run(["path", str(recipe), AUTO, "--dry-run", f"output.dir={tmp_path}/dry"]) == 0
    assert "auto: 0.02 by the rule of thumb" in capsys.readouterr().out


def test_a_search_finds_one_rate(tmp_path: Path, chooser: Chooser) -> None:
    recipe = auto_recipe(tmp_path, auto={"sizes": 1}, training={"epochs": 1})
    assert run(["auto", str(recipe), AUTO, "--no-verify"]) == 0
    assert chooser.rows == [64]
    assert [_rate(tmp_path / "out" / p) for p in ("sizes/full", "sizes/1", ".")] == [0.01] * 3
