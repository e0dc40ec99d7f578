"""Loading of recipes: `extends:`, overrides, validation, and errors with file and line.

    loaded = load_recipe("recipes/rte.yaml", ["method.name=lora", "training.epochs=3"])
    loaded.recipe.training.epochs          # 3.0
    loaded.origin("training", "epochs")    # Origin("command line")

Imports neither torch nor transformers for the built-in methods.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from methods.configs import MethodOptions
from methods.errors import MethodError
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import output_path
from sora_cli.core.removed import removed_keys
from sora_cli.core.words import shown_path
from sora_cli.recipe.changes import REPEATS, flat, of_its_time, used_removed
from sora_cli.recipe.errors import place_of, recipe_error, unknown_name
from sora_cli.recipe.layers import combine, file_layers, override_layers
from sora_cli.recipe.library import find_recipe, recipes_dir
from sora_cli.recipe.open_blocks import OPEN_BLOCKS
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.yaml_lines import Origin, Tree, parse_file

__all__ = ["LoadedRecipe", "Origin", "load_recipe"]

DEFAULT = Origin("default")


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and the origin of each of its values.

    Attributes:
        origins: origin of every value that was set, by path; `origin` also knows defaults.
        notes: messages for the user, for example on options dropped with a replaced method.
        path: the recipe file.
        name: part of output directories: the file's stem, or "official-rte" for official/rte.
        files: the recipe file and the files that it extends.
    """

    recipe: Recipe
    origins: dict[tuple[str, ...], Origin]
    notes: tuple[str, ...]
    path: Path
    name: str
    files: tuple[Path, ...] = ()

    @property
    def method_config(self) -> MethodOptions:
        """The method's typed options."""
        return self.recipe.method.config

    @property
    def output_dir(self) -> Path:
        """The output directory: `output.dir`, or runs/<recipe>-<method>-s<seed>."""
        r = self.recipe
        default = f"runs/{self.name}-{r.method.name}-s{r.training.seed}"
        return output_path(r.output.dir or default)

    def resolved(self) -> dict[str, Any]:
        """Return all values as plain data, with defaults and the options of method and task."""
        return self.recipe.resolved()

    def continuing(self, stored: Mapping[str, Any] | None) -> LoadedRecipe:
        """Return the recipe to continue or test work with that was begun with a stored recipe.

        Unless the user sets `data.repeats`, it has the value of that work: which rows it was
        trained on depends on it.

        Args:
            stored: None: there is no such work, or it is not known.
        """
        block, key = REPEATS
        known = {} if stored is None else of_its_time(stored).get(block, {})
        if key not in known or REPEATS in self.origins:
            return self
        data = self.recipe.data.model_copy(update={key: known[key]})
        return replace(self, recipe=self.recipe.model_copy(update={block: data}))

    def origin(self, *path: str) -> Origin:
        """Return the origin of a value; "default" if no file and no override set it."""
        return self.origins.get(path, DEFAULT)

    def values(self) -> Iterator[tuple[str, Any, Origin]]:
        """Yield dotted key, value and origin of every value, in order: for dry runs."""
        for path, value in flat(self.resolved()):
            yield ".".join(path), value, self.origin(*path)


def load_recipe(reference: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe with all files that it extends, apply overrides, and validate the result.

    Args:
        reference: a file, or the name of a packaged recipe such as "quickstart" or "official/rte".
        overrides: `block.key=value` words; values are read as YAML.
    """
    path = find_recipe(reference)
    files, layers = zip(*file_layers(path), strict=True)
    return _loaded([*layers, *override_layers(overrides)], path, _name(path), files)


def load_stored(
    values: Mapping[str, Any], file: Path, name: str, overrides: Sequence[str] = ()
) -> LoadedRecipe:
    """Load the recipe stored in a run's report, with overrides.

    trust_remote_code counts only if an override sets it: the report may come from somebody else,
    and must not be able to run code here.

    Args:
        values: the stored recipe: every value of the run.
        file: the report.
        name: the recipe's name in the report.
    """
    origin = Origin(shown_path(file))
    used, values = used_removed(values), of_its_time(values)
    values |= {"model": {**values.get("model", {}), "trust_remote_code": False}}
    stored = Tree(copy.deepcopy(values), {path: origin for path, _ in flat(values)})
    for was in used:
        _tell(f"{origin.file}: {was}, and this version has no such setting")
    return _loaded([stored, *override_layers(overrides)], file, name, (file,))


@cache
def _tell(note: str) -> None:
    """Show a note on a stored recipe, once: some commands load it twice."""
    say_notes([note])


def load_text(text: str, path: Path, *, draft: bool = False) -> LoadedRecipe:
    """Validate the text of a recipe before it is written.

    Args:
        path: the file to be written.
        draft: the text will still change; errors then mark the file as "(not written)".
    """
    file = f"{shown_path(path)}{' (not written)' * draft}"
    return _loaded([parse_file(text.encode(), file)], path, _name(path))


def _loaded(
    layers: Sequence[Tree], path: Path, name: str, files: tuple[Path, ...] = ()
) -> LoadedRecipe:
    tree, notes = combine(layers)
    recipe = _validated(tree, shown_path(path))
    recipe.set_places({".".join(key): origin.place for key, origin in tree.origins.items()})
    return LoadedRecipe(recipe, tree.origins, notes, path, name, files)


def _validated(tree: Tree, file: str) -> Recipe:
    for block, field in Recipe.model_fields.items():
        if field.default is not None and tree.values.get(block, {}) is None:
            tree.values[block] = {}  # a required block without keys; an optional one stays None
    for entry, key, value in removed_keys(tree.values):
        where = place_of(key, tree, file)
        raise SoraError(entry.gone(value), where=where, hint=entry.instead)
    # all errors are collected before one is raised: the message counts the others
    errors: list[ValidationError] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(tree.values)
    except ValidationError as error:
        errors.append(error)
    for block in OPEN_BLOCKS:
        named = tree.values.get(block)
        if isinstance(named, dict) and isinstance(named.get("name"), str):
            errors += _option_errors(block, named, tree)
    if errors or recipe is None:
        raise recipe_error(errors, tree, file) from errors[0]
    _no_truth_values_as_numbers(recipe, tree)
    return recipe


def _option_errors(block: str, given: Mapping[str, Any], tree: Tree) -> list[ValidationError]:
    """Return pydantic's errors in the options of the block "method" or "task"."""
    name, known = given["name"], OPEN_BLOCKS[block]
    if name not in known.names():
        raise unknown_name(block, tree)
    try:
        known.options(name)(**{key: value for key, value in given.items() if key != "name"})
    except ValidationError as error:
        return [error]
    except (ImportError, AttributeError, MethodError) as error:
        where = place_of((block, "name"), tree)
        raise SoraError(f"{block} '{name}' cannot be loaded: {error}", where=where) from error
    return []


def _no_truth_values_as_numbers(recipe: Recipe, tree: Tree) -> None:
    """Raise `SoraError` for `true` or `false` as a number, which pydantic reads as 1 or 0."""
    blocks = {
        **recipe.model_dump(),
        "task": recipe.task.options.model_dump(),
        "method": recipe.method.config.model_dump(),
    }
    for block, values in blocks.items():
        for key, given in (tree.values.get(block) or {}).items():
            if isinstance(given, bool) and not isinstance(values.get(key), bool):
                raise SoraError(
                    f"{block}.{key} must be a number, not {str(given).lower()}",
                    where=place_of((block, key), tree),
                )


def _name(path: Path) -> str:
    full, root = path.resolve(), recipes_dir().resolve()
    inside = full.relative_to(root) if full.is_relative_to(root) else Path(full.name)
    return "-".join(inside.with_suffix("").parts)
