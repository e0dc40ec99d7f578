"""Methods by name: their option classes, and the method classes, imported on first use.

A built-in method is one line here: its class as text, so that listing methods or checking a recipe
imports no torch, and its options. Third-party methods are found by entry point (group
`sora.methods`, `name = "package.module:Class"`) or added by `register`, as `--code my_method.py`
does. Two methods with one name are an error.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from methods.configs import (
    AdaLoraConfig,
    BitFitOptions,
    CutConfig,
    FullOptions,
    HeadOptions,
    LoraConfig,
    MethodOptions,
    SoraConfig,
)
from methods.errors import MethodError
from methods.words import did_you_mean

if TYPE_CHECKING:
    from methods.base import AdapterMethod

ENTRY_POINT_GROUP = "sora.methods"


_BUILTINS: dict[str, tuple[str, type[MethodOptions]]] = {
    "lora": ("methods.lora:Lora", LoraConfig),
    "adalora": ("methods.adalora:AdaLora", AdaLoraConfig),
    "sora": ("methods.sora:Sora", SoraConfig),
    "cut": ("methods.cut:Cut", CutConfig),
    "full": ("methods.baselines:Full", FullOptions),
    "head": ("methods.baselines:Head", HeadOptions),
    "bitfit": ("methods.baselines:BitFit", BitFitOptions),
}
_REGISTERED: dict[str, type[AdapterMethod]] = {}


def builtin_names() -> list[str]:
    """Return the names of the methods that come with this package."""
    return list(_BUILTINS)


def method_names() -> list[str]:
    """Return the names of all methods, built-ins first."""
    return [*_BUILTINS, *sorted({*_entry_points(), *_REGISTERED} - set(_BUILTINS))]


def low_rank_names() -> list[str]:
    """Return the names of the low-rank methods (all but the baselines)."""
    return [name for name in method_names() if config_class(name).low_rank]


def register(method: type[AdapterMethod]) -> type[AdapterMethod]:
    """Add a method class under a name that is not taken; usable as a decorator."""
    name = method.name
    known = _REGISTERED.get(name)
    # the same class again is fine: running a `--code` file twice defines it anew
    if known is not None and known is not method and _origin(known) != _origin(method):
        raise MethodError(f"two methods are called '{name}': {_origin(known)}, {_origin(method)}")
    if name in _BUILTINS or name in _entry_points():
        raise MethodError(f"'{name}' is taken; give {_origin(method)} another name")
    _REGISTERED[name] = method
    return method


def method_class(name: str) -> type[AdapterMethod]:
    """Import and return the class of a method; an unknown name raises with the nearest one."""
    if name in _BUILTINS:
        built_in: type[AdapterMethod] = resolve_name(_BUILTINS[name][0])
        return built_in
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in _entry_points():
        return _checked(_entry_points()[name].load(), name)
    raise MethodError(f"no method '{name}'; {did_you_mean(name, method_names())}")


def config_class(name: str) -> type[MethodOptions]:
    """Return a method's option class, which also holds its paper and traits.

    For a built-in method this does not import torch.
    """
    return _BUILTINS[name][1] if name in _BUILTINS else method_class(name).config_class


def plain_method(rank: int) -> dict[str, Any]:
    """Return name and options of the plainest method: LoRA at a fixed rank.

    Args:
        rank: of every layer; the scaling depends on it.
    """
    return {"name": "lora", "r": rank}


def proposed_method(rank: int) -> dict[str, Any]:
    """Return name and options of the default method of a new recipe, which finds the rank.

    Args:
        rank: of every layer at the start.
    """
    return {"name": "cut", "r_max": rank}


def sized_method(rank: int, max_params: int, after: int | float) -> dict[str, Any]:
    """Return name and options of a run that cuts its adapter to a size.

    Args:
        rank: of every layer at the start; until the cut the run equals `plain_method(rank)`.
        max_params: numbers in all factors together at the end.
        after: steps before the cut; below 1: a share of the run's steps.
    """
    name = next(name for name, (_, options) in _BUILTINS.items() if options.finds_size)
    options: Any = config_class(name)
    return {"name": name, **options.of_size(rank, max_params, after)}


def size_keys() -> list[str]:
    """Return the names of the options in which `sized_method` puts the size."""
    one, other = (sized_method(1, max_params, 0.5) for max_params in (1, 2))
    return [key for key, value in one.items() if value != other[key]]


def create(name: str, **options: Any) -> AdapterMethod:
    """Make a method from its name and options."""
    return method_class(name)(config_class(name)(**options))


@cache
def _entry_points() -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in _BUILTINS or (point.name in points and points[point.name] != point):
            raise MethodError(f"two methods are called '{point.name}': see {point.value}")
        points[point.name] = point
    return points


def _checked(loaded: Any, name: str) -> type[AdapterMethod]:
    from methods.base import AdapterMethod

    if not (inspect.isclass(loaded) and issubclass(loaded, AdapterMethod)):
        raise MethodError(f"entry point '{name}' is no AdapterMethod: {loaded!r}")
    if loaded.name != name:
        raise MethodError(f"entry point '{name}' is a method called '{loaded.name}'; use one name")
    return loaded


def _origin(method: type) -> str:
    return f"{method.__module__}:{method.__qualname__}"
