"""Names of tensors in a checkpoint, mapped to the model's parameters by transformers' own rules.

The names in a checkpoint may differ from the running model's: the backbone's prefix is added or
removed, older names are replaced, some tensors are split or joined. The rules are transformers'
(`core_model_loading`, `conversion_mapping`), applied here in the same order as in
`from_pretrained`. The model is built on torch's meta device: no weight is loaded.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.classes import BARE, WITHOUT_A_TASK, auto_class_for
from sora_cli.adapter.in_model import names_by_parameter
from sora_cli.adapter.todays_names import todays_layers, todays_names
from sora_cli.core.errors import SoraError
from sora_cli.model.loading import LOCAL_COPY, loading
from sora_cli.model.transformers_internals import (
    ExpertPlace,
    RenamingRules,
    expert_place,
    optional_weights,
)


@dataclass(frozen=True)
class Arrival:
    """The parameters that a tensor of the checkpoint becomes.

    Attributes:
        names: parameters (or buffers) supplied by the tensor; the model may lack them.
        known: True if the model has the first of them.
        plain: True if the tensor becomes this parameter unchanged, neither split nor joined.
        expert: its place in a parameter of fused experts; None: it is no expert of one.
        lacks_prefix: True if the checkpoint's name lacks the backbone's prefix.
    """

    names: tuple[str, ...]
    known: bool
    plain: bool
    lacks_prefix: bool
    expert: ExpertPlace | None = None


@dataclass
class Runtime:
    """A model on torch's meta device (shapes without values), to ask for names.

    Attributes:
        bare: True if the model has no head (class AutoModel).
        state: name -> meta tensor of every parameter and buffer that a checkpoint may supply.
    """

    model: Any
    bare: bool
    state: Mapping[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.model.state_dict()
        self._parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self._names = names_by_parameter(self.model)

    @property
    def class_name(self) -> str:
        """Name of the model's class, for `architectures` in config.json."""
        return type(self.model).__name__

    @property
    def prefix(self) -> str:
        """Attribute name of the backbone, such as "bert"; may be empty."""
        return str(self.model.base_model_prefix or "")

    def shared(self, name: str) -> list[str]:
        """Return the other names of the same parameter."""
        parameter = self._parameters.get(name)
        names = [] if parameter is None else self._names[id(parameter)]
        return [other for other in names if other != name]

    def tied_to(self, name: str) -> str | None:
        """Return the weight to which transformers ties `name` if the checkpoint lacks `name`."""
        ties: Mapping[str, str] = self.model.all_tied_weights_keys or {}
        return ties.get(name)

    def may_be_missing(self, name: str) -> bool:
        """Return True if a checkpoint need not hold this parameter."""
        if self.bare and name.startswith("pooler."):  # not used for the last hidden state
            return True
        return any(re.search(pattern, name) for pattern in optional_weights(self.model))

    def arrivals(self, names: Iterable[str]) -> dict[str, Arrival]:
        """Return the arrival of each tensor, given all names in a checkpoint."""
        rules = RenamingRules(self.model)
        return {name: self._arrival(name, rules) for name in rules.order(names)}

    def _arrival(self, name: str, rules: RenamingRules) -> Arrival:
        bare, _ = rules.rename(name)
        target, converter = rules.rename(name, self.prefix, self.state)
        # a name of the model itself stays, even if a renaming rule for older names matches it
        if target not in self.state and name in self.state:
            target, converter = rules.prefix_only(name, self.prefix, self.state), None
        targets: tuple[str, ...] = (target,)
        if converter is not None:
            first, *more = converter.target_patterns
            targets = (target, *(target.replace(first, other) for other in more))
        lacks = bool(self.prefix) and target != bare and target == f"{self.prefix}.{bare}"
        known = target in self.state
        expert = None if converter is None else expert_place(converter, name)
        return Arrival(targets, known, converter is None, lacks, expert)


def build_runtime(adapter: Adapter, config: Any, source: str) -> Runtime:
    """Build the model of an adapter, without numbers.

    The class is that of the adapter's task; if it lacks a part of the adapter, the class named by
    the base.
    """
    import transformers

    auto = auto_class_for(adapter, config)
    names = (auto, *(config.architectures or ()), *(() if adapter.task_type else WITHOUT_A_TASK))
    first: Runtime | None = None
    failure: SoraError | None = None
    for name in dict.fromkeys(names):
        kind: Any = getattr(transformers, name, None)
        own = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        if not own and name not in (auto, *WITHOUT_A_TASK):
            continue
        try:
            with loading(source, local_copy=LOCAL_COPY), torch.device("meta"):
                model = (kind if own else kind.from_config)(copy.deepcopy(config))
        except SoraError as error:  # for example, this kind of model has no class for the task
            failure = failure or error
            continue
        runtime = Runtime(model, name == BARE)
        if _has_all(runtime, adapter):
            return runtime
        first = first or runtime
    if first is None:
        raise failure or SoraError(f"transformers has no class for {source}")
    return first


def checkpoint_runtime(config: Any, source: str) -> Runtime:
    """Build the model named by a checkpoint's configuration, without numbers.

    If transformers has no class of this name, the model is built without a head.
    """
    import transformers

    kind: Any = getattr(transformers, (config.architectures or [""])[0], None)
    own = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    with loading(source, local_copy=LOCAL_COPY), torch.device("meta"):
        if own:
            return Runtime(kind(copy.deepcopy(config)), bare=False)
        return Runtime(transformers.AutoModel.from_config(copy.deepcopy(config)), bare=True)


def layer_paths(runtime: Runtime, adapter: Adapter) -> dict[str, str | None]:
    """Map the adapter's module paths to the model's; None if the model has no such module.

    An expert's path becomes the name of its parameter.
    """
    modules = {path for path, _ in runtime.model.named_modules()} | runtime.state.keys()
    paths = todays_layers(runtime.model, adapter.parts)
    return {path: today if today in modules else None for path, today in paths.items()}


def head_names(runtime: Runtime, adapter: Adapter) -> dict[str, str | None]:
    """Map the adapter's names of tensors stored in full to the model's; None if it has none."""
    names = todays_names(runtime.model, adapter.full)
    return {name: today if today in runtime.state else None for name, today in names.items()}


def _has_all(runtime: Runtime, adapter: Adapter) -> bool:
    names = [*layer_paths(runtime, adapter).values(), *head_names(runtime, adapter).values()]
    return None not in names
