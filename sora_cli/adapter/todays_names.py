"""Translate the names in a stored adapter into the names that the model has today.

Versions of transformers rename modules: `encoder.layer.0.attention.attention.query` of a vision
transformer became `layers.0.attention.q_proj`. While a checkpoint is loaded, transformers replaces
its old names by rules of its own; an adapter's names are replaced by the same rules here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from sora_cli.model.transformers_internals import RenamingRules

if TYPE_CHECKING:
    from sora_cli.adapter.parts.part import Part

_WEIGHT = ".weight"


def todays_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return {stored name of a parameter: the model's name}; names unknown to the model stay."""
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return _renamed(model, names, known)


def todays_paths(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Return {stored path of a module: the model's path}; paths unknown to the model stay."""
    modules = {path + _WEIGHT for path, _ in model.named_modules()}
    todays = _renamed(model, (path + _WEIGHT for path in paths), modules)
    return {old.removesuffix(_WEIGHT): new.removesuffix(_WEIGHT) for old, new in todays.items()}


def todays_layers(model: nn.Module, parts: Iterable[Part]) -> dict[str, str]:
    """Return {path of each part that changes a layer: the model's path}.

    Of a slice of a parameter it is the parameter's name.
    """
    changing = [part for part in parts if part.changes()]
    parameters = {p.path: name for p in changing if (name := p.parameter) is not None}
    names = todays_names(model, set(parameters.values()))
    today = todays_paths(model, (p.path for p in changing if p.path not in parameters))
    return today | {path: names[parameter] for path, parameter in parameters.items()}


def _renamed(model: nn.Module, names: Iterable[str], known: set[str]) -> dict[str, str]:
    from transformers import PreTrainedModel

    todays = {name: name for name in names}
    absent = [name for name in todays if name not in known]
    if absent and isinstance(model, PreTrainedModel):
        rules = RenamingRules(model)
        # in from_pretrained's order: some of transformers' rules remember the names before
        names_today = {name: rules.rename(name)[0] for name in rules.order(absent)}
        todays |= {name: today for name, today in names_today.items() if today in known}
    return todays
