"""The recipe's blocks whose options depend on the name in them: `method` and `task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from methods.registry import config_class, method_names
from sora_cli.recipe.families import options_class, task_names


@dataclass(frozen=True)
class OpenBlock:
    """The names that a block may have, and the pydantic class of a name's options."""

    names: Callable[[], list[str]]
    options: Callable[[str], type[BaseModel]]


OPEN_BLOCKS = {
    "method": OpenBlock(method_names, config_class),
    "task": OpenBlock(task_names, options_class),
}


def options_of(block: str, values: Mapping[str, Any]) -> type[BaseModel] | None:
    """Return the options class of the name that a block has; None if that is not known."""
    given = values.get(block)
    name = given.get("name") if isinstance(given, Mapping) else None
    known = OPEN_BLOCKS[block]
    return known.options(name) if isinstance(name, str) and name in known.names() else None
