"""Shell completion of recipes, of keys and values of overrides, and of directories of runs.

Completion must be fast: nothing here imports torch, and the recipe's schema is imported only for
the completion of a key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import typer

_DEPTH, _MOST = 3, 2000
"""Limits of the search for runs: depth of folders, and number of folders."""
_MARKS = ("report.json", "adapter_config.json")  # files that mark a run or an adapter


def recipes(incomplete: str) -> list[str]:
    """Complete the name of a packaged recipe or of a YAML file."""
    from sora_cli.recipe.library import recipe_names

    return _beginning(incomplete, [*recipe_names(), *_yaml_files(incomplete)])


def sweeps(incomplete: str) -> list[str]:
    """Complete the name of a packaged sweep or of a YAML file."""
    from sora_cli.recipe.library import sweep_names

    return _beginning(incomplete, [*sweep_names(), *_yaml_files(incomplete)])


def runs(incomplete: str) -> list[str]:
    """Complete the directory of a run or an adapter."""
    typed, folder = _folder_of(incomplete)
    names = (typed + path.relative_to(folder).as_posix() for path in _marked(folder))
    return sorted(_beginning(incomplete, names))


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a key of a recipe, or the value of a key.

    Some shells pass `training.seed=1` as one word; bash passes three words.
    """
    words = list(context.params.get("overrides") or [])
    given = " ".join(words).replace(" = ", "=").split(" ")
    keys = recipe_keys(_chosen(given))
    if words[-1:] == ["="]:
        return _beginning(incomplete, _values(keys.get(words[-2], {})))
    if words and words[-1] in keys:
        return _beginning(incomplete, _values(keys[words[-1]]))
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={known}" for known in _beginning(value, _values(keys.get(key, {})))]
    matches = _beginning(incomplete, keys)
    # a shell adds a space after a single match: offering its values, too, keeps `key=` open
    values = _values(keys[matches[0]]) if len(matches) == 1 else []
    return [*(f"{name}=" for name in matches), *(f"{matches[0]}={value}" for value in values)]


def recipe_keys(chosen: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the dotted keys of a recipe with their JSON schemas.

    Args:
        chosen: names of the blocks "method" and "task"; for a block without a known name, the
            options of all its names are returned.
    """
    from methods.registry import method_names
    from sora_cli.recipe.families import task_names
    from sora_cli.recipe.open_blocks import OPEN_BLOCKS
    from sora_cli.recipe.recipe import Recipe

    schema = Recipe.model_json_schema()
    keys = dict(_flat(schema, schema["$defs"], ""))
    for block, names in (("method", method_names()), ("task", task_names())):
        wanted = [chosen[block]] if chosen.get(block) in names else names
        for name in wanted:
            options = OPEN_BLOCKS[block].options(name).model_json_schema()
            keys |= dict(_flat(options, options.get("$defs", {}), f"{block}."))
        keys[f"{block}.name"] = {"enum": names}
    return keys


def _chosen(given: Iterable[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in given)
    return {key.removesuffix(".name"): value for key, _, value in pairs if key.endswith(".name")}


def _flat(
    schema: Mapping[str, Any], blocks: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in schema.get("properties", {}).items():
        options = (inner, *inner.get("anyOf", []))
        block = next((blocks[o["$ref"].rpartition("/")[2]] for o in options if "$ref" in o), None)
        if block is not None and "properties" in block:
            yield from _flat(block, blocks, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _values(schema: Mapping[str, Any]) -> list[str]:
    """Return the fixed values of a key, and its default."""
    options = [schema, *schema.get("anyOf", [])]
    words = [word for option in options for word in option.get("enum", [])]
    words += [option["const"] for option in options if "const" in option]
    words += [w for option in options if option.get("type") == "boolean" for w in ("true", "false")]
    default = schema.get("default")
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        words.append(default)
    return list(dict.fromkeys(str(word) for word in words if word != ""))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _yaml_files(incomplete: str) -> list[str]:
    typed, folder = _folder_of(incomplete)
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    return [f"{typed}{name}" for name in names if name.endswith((".yaml", ".yml"))]


def _folder_of(incomplete: str) -> tuple[str, Path]:
    """Split off the complete folders of a typed path: return their text and the folder."""
    typed = incomplete[: incomplete.rfind("/") + 1]
    return typed, Path(typed).expanduser()


def _marked(folder: Path) -> Iterator[Path]:
    """Yield the directories of runs and adapters below a folder, but no adapter inside a run."""
    for place, folders, files in islice(os.walk(folder), _MOST):
        path = Path(place)
        if path != folder and any(mark in files for mark in _MARKS):
            yield path
            folders.clear()
        elif len(path.relative_to(folder).parts) >= _DEPTH:
            folders.clear()  # os.walk descends into the names that are left in this list
        folders[:] = sorted(name for name in folders if not name.startswith("."))
