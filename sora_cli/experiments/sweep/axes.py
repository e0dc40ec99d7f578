"""Names of a sweep's runs: short, readable, unique, and stable when values are added later."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

_LONGEST = 80
_SEED = "training.seed"
_BARE = ("recipe", "data.name", "data.path", "method.name", "model.path")
"""Keys that names leave out: their values are clear without them."""


def run_names(axes: Sequence[Axis], points: Sequence[tuple[int, ...]]) -> list[str]:
    """Return one name per point: its values along the axes, the seed last."""
    parts = [_axis_names(axis) for axis in axes]
    last = [axis.choices[0].keys() == {_SEED} for axis in axes]
    names = []
    for point in points:
        chosen = [(is_last, part[i]) for is_last, part, i in zip(last, parts, point, strict=True)]
        words = [name for _, name in sorted(chosen, key=lambda pair: pair[0])]
        names.append("-".join(words)[:_LONGEST].strip("-.") or "run")
    return _distinct(names)


def _axis_names(axis: Axis) -> list[str]:
    """Return a name for each element of an axis: the case, or the fewest keys that distinguish all.

    Only the first keys are used, so that a key added at the end does not rename finished runs.
    """
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
    return f"{key.rpartition('.')[2]}-{_slug(_value_text(value))}"


def _value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "-".join(f"{k}-{_value_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "-".join(_value_text(item) for item in value)
    return str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+]+", "-", text).strip("-.") or "x"


def _distinct(names: list[str]) -> list[str]:
    """Number repeated names: "x", "x-2", "x-3"."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


@dataclass(frozen=True)
class Axis:
    """One axis of a sweep: a key of `grid`, all keys of `paired`, or the cases.

    Attributes:
        choices: keys and values of each element.
        places: path of keys to each element in the sweep file.
        cases: names of the elements; empty unless they are cases.
    """

    choices: tuple[Mapping[str, Any], ...]
    places: tuple[tuple[str, ...], ...]
    cases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The key of a grid's axis, otherwise the block: "paired" or "cases"."""
        block = self.places[0][0]
        return self.places[0][1] if block == "grid" else block
