"""The differences between two resolved recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from methods.errors import MethodError
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.yaml_lines import Path_

NOT_THE_RUN = ("output", "paper", "resources")
"""Blocks of a recipe that say nothing about what a run computes."""


Change = tuple[str, Any, Any]
"""Dotted key, value before, value now."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the differences in what makes the run: everything outside of `NOT_THE_RUN`.

    Keys that an earlier version of the program did not have count as their defaults.
    """
    old, new = (
        {".".join(path): value for path, value in flat(values)}
        for values in (completed(before), now)
    )
    keys = [key for key in sorted({*old, *new}) if key.split(".")[0] not in NOT_THE_RUN]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def completed(resolved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a resolved recipe with the keys that an earlier version of the program did not have.

    One that today's program would refuse is returned as it is.
    """
    try:
        return Recipe.model_validate(resolved).resolved()
    except (ValidationError, MethodError):  # the second: of a method that is not registered here
        return resolved


def flat(values: Mapping[str, Any], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield path and value of everything in nested blocks that is not itself a block, in order."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, (*path, key))
        else:
            yield (*path, key), value
