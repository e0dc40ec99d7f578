"""PEFT's rule for which modules of a model get an adapter.

PEFT ignores tensors in the file for other modules, without a warning. The adapter's effect is the
effect it has in PEFT, so a configuration and a file that contradict each other are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, StrictInt

from sora_cli.adapter.peft.patterns import Expression, match_expressions
from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few

_ALL = "all-linear"


class Targets(BaseModel):
    """The keys of a configuration that choose the modules to adapt."""

    model_config = ConfigDict(frozen=True)

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[StrictInt] | StrictInt | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None


def check_targets(targets: Targets, paths: Sequence[str], where: str) -> None:
    """Check that PEFT would adapt all of these modules, by the rule in peft.tuners.tuners_utils."""
    if not paths:
        return
    if targets.target_modules is None:
        raise SoraError("target_modules is not set, so PEFT would choose by the kind of model",
                        where=where, hint="name the modules that the file holds")  # fmt: skip
    _check_layer_options(targets, where)
    _check_all_loaded("target_modules leaves out", paths, targeted(targets, paths, where), where)
    # PEFT adapts nothing at or below a module that is saved in full (check_target_module_exists)
    stored = [Expression(name, r"(^|.*\.)", r"($|\..*)") for name in targets.modules_to_save or ()]
    hits = match_expressions(stored, paths, where=where)
    _check_all_loaded("modules_to_save has", paths, set(paths).difference(*hits), where)
    excluded = _named(targets.exclude_modules, paths, where)
    _check_all_loaded("exclude_modules has", paths, set(paths) - excluded, where)


def _check_layer_options(targets: Targets, where: str) -> None:
    layers, pattern = targets.layers_to_transform, targets.layers_pattern
    if isinstance(targets.target_modules, str) and (layers is not None or pattern is not None):
        raise SoraError("layers_to_transform and layers_pattern go with a list of target_modules, "
                        "not with an expression", where=where)  # fmt: skip
    if pattern and layers is None:
        raise SoraError("layers_pattern is set, but not layers_to_transform", where=where)


def _check_all_loaded(what: str, paths: Sequence[str], loaded: set[str], where: str) -> None:
    ignored = [path for path in paths if path not in loaded]
    if ignored:
        raise SoraError(
            f"{what} {first_few(ignored)}, so PEFT would ignore the tensors that are stored for it",
            where=where,
            hint=f"to use these tensors, correct {what.split()[0]}",
        )


def targeted(targets: Targets, paths: Sequence[str], where: str) -> set[str]:
    """Return the paths that `target_modules` chooses; all of them, if it is "all-linear"."""
    names, layers = targets.target_modules, targets.layers_to_transform
    if isinstance(names, str) and names.lower() == _ALL:
        return set(paths)
    named = _named(names, paths, where)
    if isinstance(names, str) or layers is None or layers == []:
        return named
    numbers = {layers} if isinstance(layers, int) else set(layers)
    exact, layer_numbers = set(names or ()), _layer_numbers(targets.layers_pattern, paths, where)
    return {path for path in named if path in exact or layer_numbers.get(path) in numbers}


def _named(names: list[str] | str | None, paths: Sequence[str], where: str) -> set[str]:
    """Return the paths that one expression matches in full, or that end with a name of a list."""
    if not names:
        return set()
    if isinstance(names, str):
        return set(match_expressions([Expression(names, full=True)], paths, where=where)[0])
    known = set(names)
    return {path for path in paths if not known.isdisjoint(_endings(path))}


def _endings(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _layer_numbers(
    patterns: list[str] | str | None, paths: Sequence[str], where: str
) -> dict[str, int | None]:
    """Return {path: number of its layer}, by the first pattern that matches the path."""
    names = [patterns] if isinstance(patterns, str) and patterns else patterns
    expressions = [Expression(name, r"(?:^|.*?\.)", r"\.(?P<idx>\d+)\.") for name in names or ()]
    expressions = expressions or [Expression(r".*?\.[^.]*\.(?P<idx>\d+)\.")]
    hits = match_expressions(expressions, paths, where=where)
    numbers: dict[str, int | None] = {}
    for expression, matched in zip(expressions, hits, strict=True):
        for path in matched:
            number = re.match(expression.text, path)
            index = None if number is None else number["idx"]
            numbers.setdefault(path, None if index is None else int(index))
    return numbers
