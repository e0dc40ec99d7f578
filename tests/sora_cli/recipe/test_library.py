"""Packaged recipes by name."""

from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.recipe.library import find_recipe, find_sweep, recipe_names, recipes_dir, sweep_names
from sora_cli.recipe.load import load_recipe
from tests.helpers_errors import refusal


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "recipes/quickstart.yaml"])
def test_names_are_found_from_anywhere(name):
    assert find_recipe(name) == recipes_dir() / "quickstart.yaml"


def test_names_in_folders_make_names_of_runs():
    assert load_recipe("official/rte").name == "official-rte"
    assert load_recipe("rte").name == "rte"


def test_a_file_goes_before_a_packaged_recipe():
    Path("quickstart").write_text("text", encoding="utf-8")
    assert find_recipe("quickstart") == Path("quickstart")


def test_fragments_are_not_listed():
    assert "quickstart" in recipe_names()
    assert not [name for name in recipe_names() if name.startswith("base/")]


@pytest.mark.parametrize(
    "reference",
    [
        "qickstart",
        "recipes/official/rtee.yaml",
        "mine.yml",
        "xyzzy",
        "../secret",
    ],
)
def test_the_nearest_is_named(
    reference,
):
    Path("mine.yaml").write_text("a: 1", encoding="utf-8")
    with refusal():
        find_recipe(reference)


def test_a_directory_is_no_recipe(tmp_path):
    with pytest.raises(SoraError, match="is a directory"):
        find_recipe(tmp_path)


def test_sweeps_are_found_by_file_and_by_name(tmp_path: Path) -> None:
    packaged = recipes_dir() / "sweeps/cpu/glue.yaml"
    assert "cpu/glue" in sweep_names()
    for name in ("cpu/glue", "sweeps/cpu/glue", "recipes/sweeps/cpu/glue.yaml"):
        assert find_sweep(name).resolve() == packaged.resolve()
    own = tmp_path / "glue"
    own.write_text("recipe: rte\n")
    assert find_sweep(own) == own
    with refusal():
        find_sweep("cpu/gleu")
