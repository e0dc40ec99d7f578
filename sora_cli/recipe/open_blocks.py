"""The blocks `method` and `task`: their `name` decides their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from methods.registry import config_class, method_names
from sora_cli.recipe.families import options_class, task_names


@dataclass(frozen=True)
class OpenBlock:
    """The valid names of a block, and the options class (pydantic) of each name."""

    names: Callable[[], list[str]]
    options: Callable[[str], type[BaseModel]]


OPEN_BLOCKS = {
    "method": OpenBlock(method_names, config_class),
    "task": OpenBlock(task_names, options_class),
}


def options_of(block: str, values: Mapping[str, Any]) -> type[BaseModel] | None:
    """Return the options class of a block in a recipe's values; None for an unknown name."""
    given = values.get(block)
    name = given.get("name") if isinstance(given, Mapping) else None
    known = OPEN_BLOCKS[block]
    return known.options(name) if isinstance(name, str) and name in known.names() else None
