"""Every packaged recipe, trained for two steps on rows like the Hub's, by overrides alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sora_cli.adapter.directory import read_adapter
from sora_cli.app import run
from sora_cli.experiments.path.record import read_path
from sora_cli.recipe.library import recipe_names
from sora_cli.recipe.load import load_recipe
from tests.helpers_models import tiny_bert, tiny_deberta
from tests.helpers_runs import GLUE, save_base, train, write_glue
from tests.matrix import rest_is_long

SMALL = ["training.max_steps=2", "training.checkpoint=no", "data.max_validation_rows=16"]


@pytest.fixture(scope="session")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeBERTa-v2, its backbone alone as on the Hub."""
    return save_base(tiny_deberta(), tmp_path_factory.mktemp("models") / "deberta")


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eight tasks, laid out like the Hub's."""
    return write_glue(tmp_path_factory.mktemp("data") / "glue", rows=24)


PATHS = [name for name in recipe_names() if name.startswith("path/")]
SUPERGLUE = [name for name in recipe_names() if name.startswith("superglue/")]  # test_sweeps.py
FAMILIES = [name for name in recipe_names() if name.startswith(("families/", "offline/"))]
OTHERS = {"quickstart", *PATHS, *SUPERGLUE, *FAMILIES}
GLUE_RECIPES = [name for name in recipe_names() if name not in OTHERS]


def test_which_recipes_there_are() -> None:
    tasks = sorted(GLUE)
    assert [*tasks, *[f"official/{task}" for task in tasks]] == GLUE_RECIPES


@pytest.mark.parametrize("name", rest_is_long(GLUE_RECIPES, 4))
def test_glue_recipe(tmp_path: Path, deberta: Path, glue: Path, name: str) -> None:
    out, task = tmp_path / "out", name.rpartition("/")[2]
    words = [f"model.path={deberta}", f"data.path={glue}", f"output.dir={out}", *SMALL]
    recipe = load_recipe(name).recipe
    if recipe.data.selection == "train-rows":
        words.append("data.selection_rows=8")
    report = train(name, *words)
    assert report.status == "completed"
    assert report.steps == 2
    assert report.data.truncated == dict.fromkeys(report.data.rows, 0)
    splits = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(report.metrics) == splits
    for scores in report.metrics.values():
        assert list(scores) == [*recipe.task.options.metrics, "loss"]
    rows = report.data.rows
    if recipe.data.selection == "half-validation":
        assert (rows["select"], rows["validation"], rows["train"]) == (12, 12, 24)
    elif recipe.data.selection == "train-rows":
        assert (rows["select"], rows["train"]) == (8, 16)
    else:
        assert (rows["select"], rows["train"]) == (16, 24)
    assert len(report.ranks) == 12
    assert all(m.start == 8 for m in report.ranks.values())
    assert report.base.head == ["pooler", "classifier"]
    adapter = read_adapter(out)
    assert set(adapter.head_modules) == {"pooler", "classifier"}
    classes = GLUE[task][1]
    assert adapter.meta.labels == (classes or None)
    assert adapter.head["classifier.weight"].shape[0] == max(len(classes), 1)


def test_quickstart(tmp_path: Path) -> None:
    model = save_base(tiny_bert(), tmp_path / "model")
    words = [f"model.path={model}", f"output.dir={tmp_path / 'out'}", "data.max_train_rows=64"]
    report = train("quickstart", *words, *SMALL)
    assert list(report.metrics) == ["validation"]
    assert list(report.metrics["validation"]) == ["accuracy", "loss"]
    assert report.steps == 2
    assert len(read_adapter(tmp_path / "out").ranks()) == 12


def test_the_file_itself_runs_from_anywhere(
    tmp_path: Path, deberta: Path, glue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied recipe with what it extends, and the output directory its name gives."""
    from sora_cli.recipe.library import recipes_dir

    shutil.copytree(recipes_dir(), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    train("mine/rte.yaml", f"model.path={deberta}", f"data.path={glue}", *SMALL)
    assert (tmp_path / "runs" / "rte-sora-s0" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize("name", rest_is_long(PATHS))
def test_path_recipe(tmp_path: Path, deberta: Path, glue: Path, name: str) -> None:
    words = [f"model.path={deberta}", f"data.path={glue}", f"output.dir={tmp_path / 'out'}"]
    words += [*SMALL, "path.epochs=0.5", "path.schedule.num=2"]
    recipe = load_recipe(name).recipe
    if recipe.data.selection == "train-rows":
        words.append("data.selection_rows=8")
    assert run(["path", name, *words]) == 0
    report = read_path(tmp_path / "out")
    assert report is not None
    assert [stage.total for stage in report.stages] == [96, 96]
    assert list(report.rows) == ["train-subset", "validation", "selection"]
    assert report.main_metric == recipe.task.options.metrics[0]
