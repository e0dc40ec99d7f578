"""Names of methods to their classes, loaded only when asked for.

Built-ins are strings, so listing them or checking a recipe imports no torch. Third-party methods
come by entry point (group `sora.methods`, `name = "package.module:Class"`) or by `register`, which
`--code my_method.py` ends in. Two methods of one name are an error.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from methods.configs import MethodOptions
from methods.errors import MethodError
from methods.words import did_you_mean

if TYPE_CHECKING:
    from methods.base import AdapterMethod

ENTRY_POINT_GROUP = "sora.methods"


@dataclass(frozen=True)
class Card:
    """What there is to say of a method without importing it: the attributes of its class."""

    paper: str
    adapts_rank: bool = False
    variable_options: tuple[str, ...] = ()
    low_rank: bool = True


@dataclass(frozen=True)
class Builtin:
    """Where a method and its configuration live, as "module:Class", and its card.

    A test compares the card with the class.
    """

    method: str
    config: str
    card: Card


_BUILTINS = {
    "lora": Builtin(
        "methods.lora:Lora",
        "methods.configs:LoraConfig",
        Card("Hu et al. 2021, arXiv 2106.09685"),
    ),
    "adalora": Builtin(
        "methods.adalora:AdaLora",
        "methods.configs:AdaLoraConfig",
        Card(
            "Zhang et al. 2023, arXiv 2303.10512", adapts_rank=True, variable_options=("target_r",)
        ),
    ),
    "sora": Builtin(
        "methods.sora:Sora",
        "methods.configs:SoraConfig",
        Card(
            "Ding et al. 2023, arXiv 2311.11696",
            adapts_rank=True,
            variable_options=("threshold", "l1"),
        ),
    ),
    "full": Builtin(
        "methods.baselines:Full",
        "methods.configs:MethodOptions",
        Card("Devlin et al. 2019, arXiv 1810.04805 (section 3.2)", low_rank=False),
    ),
    "head": Builtin(
        "methods.baselines:Head",
        "methods.configs:MethodOptions",
        Card("Alain and Bengio 2016, arXiv 1610.01644 (linear probes)", low_rank=False),
    ),
    "bitfit": Builtin(
        "methods.baselines:BitFit",
        "methods.configs:MethodOptions",
        Card("Ben Zaken et al. 2022, arXiv 2106.10199", low_rank=False),
    ),
}
_REGISTERED: dict[str, type[AdapterMethod]] = {}


def method_names() -> list[str]:
    """All names, built-ins first."""
    return [*_BUILTINS, *sorted({*_entry_points(), *_REGISTERED} - set(_BUILTINS))]


def low_rank_names() -> list[str]:
    """Names of the methods that are no baselines."""
    return [name for name in method_names() if card(name).low_rank]


def register(method: type[AdapterMethod]) -> type[AdapterMethod]:
    """Add a method class; usable as a decorator.

    Raises:
        MethodError: another class already has that name.
    """
    name = method.name
    known = _REGISTERED.get(name)
    if known is not None and known is not method and _origin(known) != _origin(method):
        raise MethodError(f"two methods are called '{name}': {_origin(known)}, {_origin(method)}")
    if name in _BUILTINS or name in _entry_points():
        raise MethodError(f"'{name}' is taken; give {_origin(method)} another name")
    _REGISTERED[name] = method
    return method


def method_class(name: str) -> type[AdapterMethod]:
    """The class behind a name.

    Raises:
        MethodError: no such method (the message names the nearest).
    """
    if name in _BUILTINS:
        built_in: type[AdapterMethod] = _load(_BUILTINS[name].method)
        return built_in
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in _entry_points():
        return _checked(_entry_points()[name].load(), name)
    raise MethodError(f"no method '{name}'; {did_you_mean(name, method_names())}")


def config_class(name: str) -> type[MethodOptions]:
    """The configuration class behind a name; imports no torch for a built-in."""
    if name in _BUILTINS:
        loaded: type[MethodOptions] = _load(_BUILTINS[name].config)
        return loaded
    return method_class(name).config_class


def card(name: str) -> Card:
    """What there is to say of a method; imports no torch for a built-in."""
    if name in _BUILTINS:
        return _BUILTINS[name].card
    method = method_class(name)
    variable = tuple(method.variable_options)
    return Card(method.paper, method.adapts_rank, variable, method.low_rank)


def create(name: str, **options: Any) -> AdapterMethod:
    """A method from its name and options."""
    return method_class(name)(config_class(name)(**options))


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@cache
def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in _BUILTINS or (point.name in found and found[point.name] != point):
            raise MethodError(f"two methods are called '{point.name}': see {point.value}")
        found[point.name] = point
    return found


def _checked(loaded: Any, name: str) -> type[AdapterMethod]:
    from methods.base import AdapterMethod

    if not (inspect.isclass(loaded) and issubclass(loaded, AdapterMethod)):
        raise MethodError(f"entry point '{name}' is no AdapterMethod: {loaded!r}")
    if loaded.name != name:
        raise MethodError(f"entry point '{name}' is a method called '{loaded.name}'; use one name")
    return loaded


def _origin(method: type) -> str:
    return f"{method.__module__}:{method.__qualname__}"
