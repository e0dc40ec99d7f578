"""What has to hold of a recipe that was accepted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sora_cli.recipe.load import LoadedRecipe, load_recipe
from sora_cli.run.dry_run import emit_section, recipe_lines
from sora_cli.run.preflight import check_recipe
from tests.fuzz.outcome import Outcome, outcome
from tests.fuzz.strategies import yaml_of


def check_loading(file: Path, overrides: Sequence[str] = ()) -> Outcome:
    """Load a recipe as `sora train` does; if that goes well, its values must survive a file.

    Raises:
        AssertionError: they do not, or see `outcome`.
    """
    loaded: list[LoadedRecipe] = []

    def load() -> None:
        loaded.append(load_recipe(file, overrides))
        emit_section("recipe", recipe_lines(loaded[0]))  # as a dry run shows it
        assert loaded[0].output_dir

    result = outcome(load)
    if not result.good:
        return result
    resolved = loaded[0].resolved()
    assert json.loads(json.dumps(resolved, allow_nan=False)) == resolved
    again = file.with_name("again.yaml")
    again.write_text(yaml_of(resolved), encoding="utf-8")
    assert load_recipe(again).resolved() == resolved
    return outcome(lambda: check_recipe(loaded[0].recipe))
