"""From a recipe to its stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.path.plan import path_directory, plan_stages, unused
from sora_cli.recipe.load import load_recipe
from tests.sora_cli.experiments.path.support import path_recipe


def _lines(recipe: Path, *words: str) -> list[str]:
    with pytest.raises(SoraError) as caught:
        plan_stages(load_recipe(recipe, words))
    return caught.value.lines()


def test_every_stage_is_an_ordinary_recipe(tmp_path: Path) -> None:
    loaded = load_recipe(path_recipe(tmp_path), ["training.seed=3", "training.early_stopping=2"])
    plans = plan_stages(loaded)
    assert [p.value for p in plans] == [0, 0.02, 0.06, 0.12]
    assert [p.loaded.method_config.threshold for p in plans] == [0, 0.02, 0.06, 0.12]  # type: ignore[attr-defined]
    assert [p.recipe.training.epochs for p in plans] == [2, 1, 1, 1]
    assert [p.recipe.training.seed for p in plans] == [3, 1003, 2003, 3003]
    assert [p.directory for p in plans] == ["stages/00", "stages/01", "stages/02", "stages/03"]
    for plan in plans:
        block = plan.recipe.training
        assert (block.evaluate, block.checkpoint, block.keep_best) == ("no", "no", False)
        assert plan.recipe.method.config.r_max == 4  # type: ignore[attr-defined]


def test_what_the_path_overrules_is_said(tmp_path: Path) -> None:
    recipe = path_recipe(tmp_path)
    notes = unused(load_recipe(recipe, ["training.keep_best=true"]))
    assert [note.split(" ")[0] for note in notes] == ["method.threshold", "training.keep_best"]
    assert "tiny.yaml" in notes[0]


def test_max_steps_are_of_the_first_stage_where_epochs_are_given(tmp_path: Path) -> None:
    recipe = path_recipe(tmp_path)
    with_epochs = plan_stages(load_recipe(recipe, ["training.max_steps=5"]))
    assert [p.recipe.training.total_steps(48) for p in with_epochs] == [5, 6, 6, 6]
    without = plan_stages(load_recipe(recipe, ["training.max_steps=5", "path.epochs=null"]))
    assert [p.recipe.training.total_steps(48) for p in without] == [5, 5, 5, 5]


def test_directory(tmp_path: Path) -> None:
    recipe = path_recipe(tmp_path)
    assert path_directory(load_recipe(recipe)) == tmp_path / "out"
    loaded = load_recipe(recipe, ["output.dir=null", "training.seed=4"])
    assert path_directory(loaded) == Path("runs/tiny-sora-path-s4")


def test_a_ramp(tmp_path: Path) -> None:
    schedule = {"kind": "exp_linear", "start": 1e-3, "stop": 0.1, "num": 3, "values": None}
    recipe = path_recipe(tmp_path, path={"schedule": schedule})
    assert [p.value for p in plan_stages(load_recipe(recipe))] == pytest.approx([1e-3, 1e-2, 0.1])


def test_a_recipe_without_a_path(tmp_path: Path) -> None:
    from tests.helpers_models import tiny_bert
    from tests.helpers_runs import write_recipe

    lines = _lines(write_recipe(tmp_path, tiny_bert(num_labels=2)))
    assert lines[0].endswith("tiny.yaml has no path block")
    hint = lines[2]
    assert plan_stages(load_recipe(tmp_path / "tiny.yaml", [hint]))  # what it says can be typed
