"""The layers of a base model, with all their names, found without loading its weights.

A model of transformers is built on torch's meta device, and its checkpoint's names are turned into
today's by transformers' own rules. A model of diffusers, which this program cannot load, is known
by the names in its weight files: they are the module paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from methods.init import linear_shape
from sora_cli.adapter.classes import task_type_of
from sora_cli.adapter.foreign.places import DIFFUSERS_CLASS
from sora_cli.adapter.metadata import BaseReference, read_json
from sora_cli.adapter.saving import base_reference
from sora_cli.core.errors import SoraError
from sora_cli.core.hub import quiet_hub
from sora_cli.core.shell import quote
from sora_cli.model.files import MODEL_CONFIG, SAFE_WEIGHTS
from sora_cli.model.fingerprint import read_header, stored_tensors
from sora_cli.model.loading import LOCAL_COPY, loading, split_gguf
from sora_cli.model.references import local_checkpoint, resolve_model_path
from sora_cli.model.transformers_internals import RenamingRules

PIPELINE = "model_index.json"
"""diffusers' file that marks a directory as a pipeline; each model is a directory below."""
_WEIGHT = ".weight"
_TEXT_MODEL = "text_model"
"""Parent of all layers in CLIP's text encoders, until transformers 5 removed it from the paths."""


@dataclass(frozen=True)
class BaseLayers:
    """A base model's linear layers and convolutions.

    Attributes:
        shapes: module path -> (out, in); for a convolution with its kernel.
        names: every known name of a module, also those of checkpoints -> its path today.
        fan_in_fan_out: some are Conv1D.
        loadable: this program can load the model.
    """

    reference: BaseReference
    shapes: Mapping[str, tuple[int, ...]]
    names: Mapping[str, str]
    task_type: str | None
    fan_in_fan_out: bool
    loadable: bool


def base_layers(reference: str, parts: Iterable[str]) -> BaseLayers:
    """Find the layers of a model.

    Args:
        reference: a model as in recipes, a directory of a diffusers model, or a diffusers pipeline.
            In a pipeline exactly one of `parts` has to be one of its models.
        parts: the models that an adapter file is for, by diffusers' names.
    """
    resolved = resolve_model_path(reference)
    folder = Path(resolved)
    if (folder / PIPELINE).is_file():
        folder = _part_of_pipeline(folder, parts)
        resolved = reference = str(folder)
    if folder.is_dir() and _is_diffusers(folder):
        return _stored_layers(reference, resolved, folder)
    return _built_layers(reference, resolved)


def _part_of_pipeline(folder: Path, parts: Iterable[str]) -> Path:
    candidates = [folder / part for part in parts if (folder / part / MODEL_CONFIG).is_file()]
    if len(candidates) == 1:
        return candidates[0]
    choices = [quote(str(path.parent)) for path in sorted(folder.glob(f"*/{MODEL_CONFIG}"))]
    raise SoraError(
        f"{folder} is a pipeline of several models",
        hint=f"name the adapter's model: --base {' or '.join(choices)}",
    )


def _is_diffusers(folder: Path) -> bool:
    if not (folder / MODEL_CONFIG).is_file():
        return False
    raw = read_json(folder / MODEL_CONFIG)
    return isinstance(raw, dict) and DIFFUSERS_CLASS in raw


def _stored_layers(reference: str, resolved: str, folder: Path) -> BaseLayers:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob(SAFE_WEIGHTS)):
        for tensor in read_header(file):
            if tensor.name.endswith(_WEIGHT) and len(tensor.shape) >= 2:
                shapes[tensor.name.removesuffix(_WEIGHT)] = tensor.shape
    if not shapes:
        raise SoraError(f"{folder} holds no safetensors weights, which name the model's layers",
                        hint="save_pretrained() of diffusers writes them")  # fmt: skip
    names = {name: name for name in shapes}
    base = base_reference(reference, resolved, None)
    return BaseLayers(base, shapes, names, None, fan_in_fan_out=False, loadable=False)


def _built_layers(reference: str, resolved: str) -> BaseLayers:
    model = _build_model(reference, resolved)
    shapes: dict[str, tuple[int, ...]] = {}
    transposed = False
    for path, module in model.named_modules():
        shape = linear_shape(module)
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d) and module.groups == 1:
            shapes[path] = tuple(module.weight.shape)
        elif shape is not None:
            shapes[path] = shape[1], shape[0]
            transposed |= not isinstance(module, torch.nn.Linear)
    return BaseLayers(
        base_reference(reference, resolved, None),
        shapes,
        _names(model, shapes, resolved),
        task_type_of(type(model).__name__),
        fan_in_fan_out=transposed,
        loadable=True,
    )


def _build_model(reference: str, resolved: str) -> Any:
    """Build the class that the configuration names, without numbers."""
    import transformers

    quiet_hub()
    source, gguf = split_gguf(resolved)
    with loading(reference, resolved, local_copy=LOCAL_COPY), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(source, **gguf, trust_remote_code=False)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind(config)
        return transformers.AutoModel.from_config(config)


def _names(model: Any, shapes: Mapping[str, Any], resolved: str) -> dict[str, str]:
    names = {path: path for path in shapes}
    rules, state = RenamingRules(model), model.state_dict()
    folder = local_checkpoint(resolved)
    old = [tensor.name for tensor in stored_tensors(folder)] if folder is not None else []
    old += [f"{_TEXT_MODEL}.{path}{_WEIGHT}" for path in shapes if _TEXT_MODEL not in path]
    prefix = str(model.base_model_prefix or "")
    # in from_pretrained's order: some of transformers' rules remember the names before
    for name in rules.order(n for n in old if n.endswith(_WEIGHT)):
        today, converter = rules.rename(name, prefix, state)
        if converter is None and today.removesuffix(_WEIGHT) in shapes:
            names.setdefault(name.removesuffix(_WEIGHT), today.removesuffix(_WEIGHT))
    return names
