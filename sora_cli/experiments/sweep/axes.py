"""Names of a sweep's runs: short, readable, unique, and unchanged by what is added later."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

_LONGEST = 80
_SEED = "training.seed"
_BARE = ("recipe", "data.name", "data.path", "method.name", "model.path")
"""Keys whose values say enough without the key."""


def run_names(axes: Sequence[Axis], points: Sequence[tuple[int, ...]]) -> list[str]:
    """Return one name per point: the values that differ, the seed last."""
    parts = [_axis_names(axis) for axis in axes]
    last = [axis.choices[0].keys() == {_SEED} for axis in axes]
    names = []
    for point in points:
        chosen = [(is_last, part[i]) for is_last, part, i in zip(last, parts, point, strict=True)]
        words = [name for _, name in sorted(chosen, key=lambda pair: pair[0])]
        names.append("-".join(words)[:_LONGEST].strip("-.") or "run")
    return _distinct(names)


def _axis_names(axis: Axis) -> list[str]:
    """Name each element: the case's name, or the fewest first keys that tell them apart."""
    if axis.cases:
        return [_slug(case) for case in axis.cases]
    keys = list(axis.choices[0])
    for count in range(1, len(keys) + 1):
        names = ["-".join(_part(key, c[key]) for key in keys[:count]) for c in axis.choices]
        if len(set(names)) == len(names):
            break
    return names


def _part(key: str, value: Any) -> str:
    if key == _SEED:
        return f"s{value}"
    if key in _BARE:
        text = str(value)
        return _slug(PurePath(text).with_suffix("").name if key == "recipe" else text)
    return f"{key.rpartition('.')[2]}-{_slug(_shown(value))}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "-".join(f"{k}-{_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "-".join(_shown(item) for item in value)
    return str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+]+", "-", text).strip("-.") or "x"


def _distinct(names: list[str]) -> list[str]:
    """Add a number to names that occur twice."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


@dataclass(frozen=True)
class Axis:
    """One list of a sweep: of a grid's key, of all paired keys, or of the cases.

    Attributes:
        choices: keys and values of each element.
        places: where each stands, as a path of keys in the sweep file.
        cases: the elements' names, if they have any.
    """

    choices: tuple[Mapping[str, Any], ...]
    places: tuple[tuple[str, ...], ...]
    cases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The key of a grid, or the block that the list stands in: "paired" or "cases"."""
        block = self.places[0][0]
        return self.places[0][1] if block == "grid" else block
