"""From a recipe to its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.path.plan import overruled, path_directory, plan_stages
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
    notes = overruled(load_recipe(recipe, ["training.keep_best=true"]))
    assert [note.split(" ")[0] for note in notes] == ["method.threshold", "training.keep_best"]
    assert "tiny.yaml" in notes[0]


def test_max_steps_are_of_the_first_stage_where_epochs_are_given(tmp_path: Path) -> None:
    recipe = path_recipe(tmp_path)
    with_epochs = plan_stages(load_recipe(recipe, ["training.max_steps=5"]))
    assert [p.recipe.training.total_steps(48) for p in with_epochs] == [5, 6, 6, 6]
    without = plan_stages(load_recipe(recipe, ["training.max_steps=5", "path.epochs=null"]))
    assert [p.recipe.training.total_steps(48) for p in without] == [5, 5, 5, 5]


def test_a_path_has_no_start_but_the_methods_own(tmp_path: Path) -> None:
    lines = _lines(path_recipe(tmp_path), "start.adapter=runs/x")
    assert lines[0].startswith("start does not go with a path")
    assert "start.adapter=runs/x" in lines[1]


def test_directory(tmp_path: Path) -> None:
    recipe = path_recipe(tmp_path)
    assert path_directory(load_recipe(recipe)) == tmp_path / "out"
    loaded = load_recipe(recipe, ["output.dir=null", "training.seed=4"])
    assert path_directory(loaded) == Path("runs/tiny-sora-path-s4")


def test_a_ramp(tmp_path: Path) -> None:
    schedule = {"kind": "exp_linear", "start": 1e-3, "stop": 0.1, "num": 3, "values": None}
    recipe = path_recipe(tmp_path, path={"schedule": schedule})
    assert [p.value for p in plan_stages(load_recipe(recipe))] == pytest.approx([1e-3, 1e-2, 0.1])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["path.vary=method.treshold"],
            [
                "path.vary: 'method.treshold' may not vary with method sora",
                "command line: path.vary=method.treshold",
                "did you mean 'method.threshold'?",
            ],
        ),
        (
            ["path.vary=training.learning_rate"],
            [
                "path.vary: 'training.learning_rate' may not vary with method sora",
                "command line: path.vary=training.learning_rate",
                "there are: method.threshold, method.l1, method.target_r",
            ],
        ),
        (
            ["path.schedule.values=[0, 1e-3, -1]"],
            [
                "path.schedule: method.threshold cannot be -1 (stage 2): "
                "Input should be greater than or equal to 0",
                "command line: path.schedule.values=[0, 1e-3, -1]",
            ],
        ),
        (
            ["path.schedule.values=[0, high]"],
            [
                "path.schedule: method.threshold cannot be 'high' (stage 1): "
                "Input should be a valid number, unable to parse string as a number",
                "command line: path.schedule.values=[0, high]",
            ],
        ),
    ],
)
def test_impossible_paths(tmp_path: Path, words: list[str], expected: list[str]) -> None:
    assert _lines(path_recipe(tmp_path), *words) == expected


def test_a_method_without_anything_to_vary(tmp_path: Path) -> None:
    lines = _lines(path_recipe(tmp_path), "method.name=lora")
    assert lines[0] == "path.vary: method lora has no option that may vary between stages"
    assert lines[2] == "methods that have one: adalora, sora, cut"


def test_a_recipe_without_a_path(tmp_path: Path) -> None:
    from tests.helpers_models import tiny_bert
    from tests.helpers_runs import write_recipe

    lines = _lines(write_recipe(tmp_path, tiny_bert(num_labels=2)))
    assert lines[0].endswith("tiny.yaml has no path block")
    hint = lines[2]
    assert plan_stages(load_recipe(tmp_path / "tiny.yaml", [hint]))  # what it says can be typed


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ({"schedule": {"kind": "list", "values": [1]}}, "a list of at least 2 values"),
        ({"schedule": {"kind": "linear", "values": None}}, "no start is set"),
        ({"schedule": {"kind": "list", "start": 0}}, "start does not go with kind list"),
        ({"schedule": {"kind": "lin"}}, "linear, log_linear, exp_linear or list"),
        ({"schedule": 3}, "a block of keys"),
        ({"scedule": {}}, "did you mean 'schedule'?"),
        ({"memorisation_rows": 0}, "at least 1"),
    ],
)
def test_malformed_blocks(tmp_path: Path, path: dict[str, Any], says: str) -> None:
    recipe = path_recipe(tmp_path)
    text = recipe.read_text(encoding="utf-8")
    import yaml

    values = yaml.safe_load(text)
    for key, value in path.items():
        old = values["path"].get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        values["path"][key] = {**old, **value} if both else value
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(SoraError) as caught:
        load_recipe(recipe)
    assert says in "\n".join(caught.value.lines())
    assert "tiny.yaml" in "\n".join(caught.value.lines())
