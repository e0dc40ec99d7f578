"""`sora recipes`: list, show and copy the recipes that come with the tool."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote

from methods.words import did_you_mean
from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.console import emit, say
from sora_cli.core.errors import SoraError
from sora_cli.recipe.layers import extended_files
from sora_cli.recipe.library import (
    SCHEMA_FILE,
    find_recipe,
    packaged_recipe,
    recipe_names,
    recipe_title,
    recipes_dir,
    sweep_code,
    sweep_files,
    sweep_names,
)


def list_recipes(*, as_json: bool = False) -> None:
    """Print each recipe's name and the first line of its header."""
    names = recipe_names()
    if as_json:
        titles = {name: recipe_title(recipes_dir() / f"{name}.yaml") for name in names}
        emit(json.dumps({"recipes": titles, "sweeps": sweep_names()}, indent=2))
        return
    width = max(len(name) for name in names)
    for name in names:
        emit(f"{name:{width}}  {recipe_title(recipes_dir() / f'{name}.yaml')}")
    say(f"\nsweeps over them, for sora sweep: {', '.join(sweep_names())}")


def show_recipe(name: str) -> None:
    """Print a recipe's text, or a sweep's."""
    emit(find_recipe(name).read_text(encoding="utf-8").rstrip("\n"))


def copy_recipes(names: Sequence[str], to: Path, *, force: bool) -> None:
    """Copy recipes with what they extend and the schema; without names all, and all of the sweeps.

    Raises:
        SoraError: an unknown name, or a file with other content is in the way.
    """
    root = recipes_dir().resolve()
    recipes = [_packaged(name) for name in names or recipe_names()]
    sweeps = [] if names else [*sweep_files(), *sweep_code()]
    sources = [*_with_bases(recipes), *sweeps, root / SCHEMA_FILE]
    pairs = [(source, to / source.resolve().relative_to(root)) for source in sources]
    if not force:
        for source, target in pairs:
            _check_free(source, target)
    for source, target in pairs:
        try:
            write_bytes_atomic(target, source.read_bytes())
        except OSError as error:
            raise SoraError(f"'{target}' cannot be written: {error.strerror}") from error
    say(f"{len(pairs)} files in {to}")
    first = (to / recipes[0].resolve().relative_to(root)).as_posix()
    say(f"next: sora train {quote(first)}")


def _packaged(name: str) -> Path:
    path = packaged_recipe(name)
    if path is None:
        raise SoraError(f"no recipe '{name}'", hint=did_you_mean(name, recipe_names()))
    return path


def _with_bases(recipes: Iterable[Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for recipe in recipes:
        for file in extended_files(recipe):
            files[file.resolve()] = None
    return list(files)


def _check_free(source: Path, target: Path) -> None:
    if target.exists() and (target.is_dir() or target.read_bytes() != source.read_bytes()):
        raise SoraError(f"'{target}' exists and differs", hint="overwrite it with --force")
