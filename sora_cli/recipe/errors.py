"""Conversion of pydantic's errors about a recipe into one error with its file and line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from methods.words import closest, did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.core.words import expected, shown_value
from sora_cli.recipe.open_blocks import OPEN_BLOCKS, options_of
from sora_cli.recipe.recipe import MethodBlock, Recipe, TaskBlock
from sora_cli.recipe.yaml_lines import Origin, Path_, Tree

_NAMED: Mapping[str, type[BaseModel]] = {"method": MethodBlock, "task": TaskBlock}
_NO_DEFAULT = "default_factory_not_called"  # a consequence: another value of the block is wrong


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: `kind` is pydantic's error type, `key` the path in the recipe."""

    kind: str
    key: Path_
    message: str


def recipe_error(errors: Sequence[ValidationError], tree: Tree, file: str) -> SoraError:
    """Return an error for the first problem that also counts the others.

    Args:
        errors: pydantic's errors about the recipe, the method's options and the task's options.
        tree: the validated values with their origins.
        file: the recipe's name, for problems without a line, such as a missing block.
    """
    problems = _problems(errors, tree.values)
    first = problems[0]
    error = _explain(first, tree, file)
    if len(problems) == 1:
        return error
    others = "1 more problem" if len(problems) == 2 else f"{len(problems) - 1} more problems"
    return SoraError(f"{error.what} (and {others})", where=error.where, hint=error.hint)


def unknown_name(block: str, tree: Tree) -> SoraError:
    """Return the error for an unknown name of a method or task family."""
    name = tree.values[block]["name"]
    where = place_of((block, "name"), tree)
    known = OPEN_BLOCKS[block].names()
    hint = did_you_mean(name, known)
    own = f"{'family' if block == 'task' else block} of your own: --code FILE.py"
    if closest(name, known) is None:
        hint += f"; a {own}"
    elif block == "task":
        hint += f" A {own}"
    return SoraError(f"no {block} '{name}'", where=where, hint=hint)


def place_of(key: Path_, tree: Tree, file: str = "") -> str:
    """Return the place of a key, else of the block around it, else the file."""
    for end in range(len(key), 0, -1):
        origin = tree.origins.get(key[:end])
        if origin is not None:
            return origin.place
    return file


def _problems(errors: Sequence[ValidationError], values: Mapping[str, Any]) -> list[Problem]:
    """Return one problem per key. Unknown keys come first: a typo explains a missing key."""
    problems: dict[Path_, Problem] = {}
    for error in errors:
        prefix = _block_of(error, values)
        for item in error.errors(include_url=False):
            if item["type"] == _NO_DEFAULT:
                continue
            loc = (*prefix, *(str(part) for part in item["loc"]))
            key = loc if item["type"] == "missing" else _in_recipe(loc, values)
            cause = item.get("ctx", {}).get("error")
            message = str(cause) if cause is not None else item["msg"]
            problems.setdefault(key, Problem(item["type"], key, message))
    return sorted(problems.values(), key=lambda problem: problem.kind != "extra_forbidden")


def _block_of(error: ValidationError, values: Mapping[str, Any]) -> Path_:
    """Return the block ("method" or "task") that an error belongs to; () for all other blocks."""
    classes = {block: options_of(block, values) for block in OPEN_BLOCKS}
    blocks = (b for b, kind in classes.items() if kind and kind.__name__ == error.title)
    return () if error.title == Recipe.__name__ else (next(blocks, "method"),)


def _in_recipe(loc: Path_, values: Any) -> Path_:
    """Return the part of a pydantic location that is a recipe key, without names of union types."""
    key: Path_ = ()
    for part in loc:
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            break
        key = (*key, part)
    return key


def _explain(problem: Problem, tree: Tree, file: str) -> SoraError:
    name = ".".join(problem.key)
    if problem.kind == "extra_forbidden":
        return _unknown_key(problem.key, tree)
    if problem.kind == "missing":
        return _missing(problem.key, tree, file)
    if problem.kind in {"value_error", "assertion_error"}:
        what = f"{name}: {problem.message}" if name else problem.message  # no name: of the whole
        return SoraError(what, where=_place_of_mentioned(problem, tree) or file or None)
    return _bad_value(_field_of(problem.key, tree), tree, place_of(problem.key, tree, file))


def _bad_value(key: Path_, tree: Tree, where: str) -> SoraError:
    """Return the error for a value of the wrong type or range."""
    name, field = ".".join(key), key[-1]
    value = _value(key, tree.values)
    block = _model(key[:-1], tree.values)
    if len(key) == 1 or block is None:
        named = field in OPEN_BLOCKS and isinstance(value, str)
        hint = f"write {field}.name={value}" if named else None
        return SoraError(
            f"{field} must be a block of keys, not {shown_value(value)}", where=where, hint=hint
        )
    words, choices = expected(block, field, value=value)
    what = f"{name} must be {words}, not {shown_value(value)}"
    hint = did_you_mean(value, choices) if choices and isinstance(value, str) else None
    if hint is not None and " number" in words and not hint.startswith("did you"):
        hint = None  # the choices are not all: numbers are allowed, too
    if hint is not None and "a list of texts" in words and not hint.startswith("did you"):
        hint = f"as a list: {field}: [{value}]"
    if "text" in words and isinstance(value, int | float):
        text = shown_value(value)
        hint = f'put it in quotes: {name}=\'"{text}"\' or, in a file, {field}: "{text}"'
    return SoraError(what, where=where, hint=hint or block.model_fields[field].description)


def _unknown_key(key: Path_, tree: Tree) -> SoraError:
    word, where = key[-1], place_of(key, tree)
    block = _model(key[:-1], tree.values)
    known = _fields(block)
    homes = [
        f"{other}.{word}"
        for other in Recipe.model_fields
        if other != key[0] and word in _fields(_model((other,), tree.values))
    ]
    hint = f"did you mean '{homes[0]}'?" if homes else did_you_mean(word, known) if known else None
    if len(key) == 1:
        return SoraError(f"unknown block '{word}'", where=where, hint=hint)
    inside = ".".join(key[:-1])
    if key[0] in OPEN_BLOCKS:
        inside = f"{key[0]} ({tree.values[key[0]].get('name')})"
    return SoraError(f"unknown key '{word}' in {inside}", where=where, hint=hint)


def _missing(key: Path_, tree: Tree, file: str) -> SoraError:
    if len(key) == 1:
        block: Any = Recipe.model_fields[key[0]].annotation
        hint = f"a recipe needs at least {key[0]}.{_fields(block)[0]}"
        return SoraError(f"the block '{key[0]}' is missing", where=file, hint=hint)
    where = place_of(key, tree, file)
    parent = _model(key[:-1], tree.values)
    if parent is None and key[-1].isdigit():  # a list that is too short
        return _bad_value(_field_of(key, tree), tree, where)
    meaning = parent.model_fields[key[-1]].description if parent is not None else None
    return SoraError(f"{'.'.join(key)} is missing", where=where, hint=meaning)


def _place_of_mentioned(problem: Problem, tree: Tree) -> str | None:
    """Return the place of a key that a check's message names; overrides come first."""
    words = re.findall(r"\w+", problem.message)
    block = problem.key if _model(problem.key, tree.values) else problem.key[:-1]
    origins = [tree.origins.get((*block, word)) for word in words]
    known: list[Origin] = [origin for origin in origins if origin is not None]
    # of two keys in conflict, the user has just typed the override
    known.sort(key=lambda origin: not origin.text)
    return known[0].place if known else place_of(problem.key, tree) or None


def _field_of(key: Path_, tree: Tree) -> Path_:
    """Return the field around a key that points into a value, for example to a list item."""
    while len(key) > 1 and _model(key[:-1], tree.values) is None:
        key = key[:-1]
    return key


def _value(key: Path_, values: Any) -> Any:
    for part in key:
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


def _model(path: Path_, values: Mapping[str, Any]) -> type[BaseModel] | None:
    """Return the pydantic class of the block at a path; None for a path to plain values."""
    if not path:
        return Recipe
    if path[0] in OPEN_BLOCKS and len(path) == 1:
        return options_of(path[0], values) or _NAMED[path[0]]
    block: type[BaseModel] | None = Recipe
    for part in path:
        field = None if block is None else block.model_fields.get(part)
        block = None if field is None else _block_class(field.annotation)
    return block


def _block_class(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic class of a field that holds a block (optional or not), else None."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _fields(block: type[BaseModel] | None) -> list[str]:
    return [] if block is None else list(block.model_fields)
