"""Differences between two resolved recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from methods.errors import MethodError
from sora_cli.core.errors import DiscontinuedError
from sora_cli.core.removed import removed_keys
from sora_cli.core.words import shown_value
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.yaml_lines import Path_

NOT_THE_RUN = ("output", "paper", "resources")
"""Blocks of a recipe that do not affect the results of a run."""


REPEATS = ("data", "repeats")
"""The key that decides which rows are held out; versions without it dealt each row by itself."""

Change = tuple[str, Any, Any]
"""Dotted key, value before, value now."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return all keys outside `NOT_THE_RUN` whose values differ between two recipes.

    Keys that are missing in a recipe of an earlier version count with their defaults.
    """
    old, new = (
        {".".join(path): value for path, value in flat(values)}
        for values in (completed(before), now)
    )
    keys = [key for key in sorted({*old, *new}) if key.split(".")[0] not in NOT_THE_RUN]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def completed(resolved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the keys of later versions to a resolved recipe, with the values of its time.

    Settings that did something and are gone stay. A recipe that the current version rejects is
    returned unchanged.
    """
    try:
        values = Recipe.model_validate(of_its_time(resolved)).resolved()
    except (ValidationError, MethodError):  # MethodError: its method is not registered here
        return resolved
    for entry, (block, key), value in removed_keys(resolved):
        if value not in entry.unused:
            values[block] = {**values[block], key: value}
    return values


def of_its_time(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored recipe with the values of the present version that do what it did.

    Keys and values that later versions removed are left out; `used_removed` says which counted.
    `REPEATS` is added where the recipe lacks it; if it holds no rows out, every value does the
    same, and the key is left out. A name or revision beside files did nothing, and is refused now.
    """
    for _, (block, gone), _ in removed_keys(stored):
        kept = {key: value for key, value in stored[block].items() if key != gone}
        stored = {**stored, block: kept}
    block, key = REPEATS
    data = stored.get(block) or {}
    if data.get("files") is not None and (data.get("name") or data.get("revision")):
        data = {**data, "name": None, "revision": None}
        stored = {**stored, block: data}
    dealt = data.get("held_out_rows") is not None or stored.get("auto") is not None
    if key in data or not (dealt or data.get("selection", "validation") != "validation"):
        return dict(stored)
    return {**stored, block: {**data, key: "separate"}}


def used_removed(stored: Mapping[str, Any]) -> list[str]:
    """Return the removed settings that a stored recipe used, each with its value."""
    return [
        f"{'.'.join(key)} was {shown_value(value)}"
        for entry, key, value in removed_keys(stored)
        if value not in entry.unused
    ]


def check_continuable(stored: Mapping[str, Any], work: str) -> None:
    """Raise `DiscontinuedError` for work that used a removed setting.

    Args:
        work: its name in the message, such as "the run in 'runs/a'".
    """
    used = used_removed(stored)
    if used:
        raise DiscontinuedError(
            f"{work} can be neither continued nor tested again: {', '.join(used)}, "
            "and this version has no such setting"
        )


def flat(values: Mapping[str, Any], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield path and value of each leaf of nested blocks, in order; an empty block is a leaf."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, (*path, key))
        else:
            yield (*path, key), value
