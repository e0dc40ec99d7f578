"""Save the adapters of a trained model: in our own runs, and of any model after `attach`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from methods.base import AdapterMethod, LowRankLinear
from methods.inject import adapted_layers
from methods.sharding import whole
from methods.updates import Replaced
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.card import write_card
from sora_cli.adapter.classes import names_classes, task_type_of
from sora_cli.adapter.companions import auto_of, save_processor
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.core.errors import SoraError
from sora_cli.model.fingerprint import fingerprint
from sora_cli.model.new_tokens import trained_rows
from sora_cli.model.references import hub_name, local_checkpoint


def save_adapter(
    model: Any,
    method: AdapterMethod,
    directory: str | Path,
    *,
    head: Sequence[str] | None = None,
    base_model: str | None = None,
    processor: Any = None,
    force: bool = False,
) -> Adapter:
    """Write a trained transformers model's adapters as a PEFT LoRA directory.

    Args:
        head: paths of modules stored in full; None: every trained module outside the adapters.
        base_model: path or Hub id of the base; None: the path that the model was loaded from.
        processor: the tokenizer or image processor, to be saved beside the adapter.
        force: replace an adapter that is there.
    """
    layers = adapted_layers(model)
    config = model.config
    path = base_model or config.name_or_path
    kind = type(model).__name__
    classes = int(config.num_labels) if names_classes(kind) else None  # elsewhere a mere default
    names = getattr(config, "id2label", None)  # PVT has none
    adapter = build_adapter(
        model,
        method,
        layers,
        head=tuple(trained_modules(model, layers) if head is None else head),
        task_type=task_type_of(kind),
        base=base_reference(path, path, None),
        meta=AdapterMeta(
            method=method.name,
            method_config=method.config.model_dump(mode="json"),
            labels=tuple(names.values()) if names and classes and classes > 1 else None,
            num_labels=classes,
            problem_type=getattr(config, "problem_type", None),
        ),
    )

    def beside(folder: Path) -> None:
        why = None if processor is None else save_processor(processor, auto_of(processor), folder)
        if why is not None:
            raise SoraError(why)

    write_adapter(Path(directory), adapter, force=force, beside=beside, describe=write_card)
    return adapter


def build_adapter(
    model: nn.Module,
    method: AdapterMethod,
    layers: Mapping[str, LowRankLinear],
    *,
    head: tuple[str, ...],
    task_type: str | None,
    base: BaseReference,
    meta: AdapterMeta,
) -> Adapter:
    """Return a trained model's factors and head, ready to be written."""
    started = {path: layer.rank for path, layer in layers.items()}
    return Adapter.of(
        {path: method.factors(layer) for path, layer in layers.items()},
        head_tensors(model, head),
        head,
        task_type,
        base,
        rows={
            path: Replaced(rows.ids.cpu(), whole(rows.rows.detach()).cpu().clone())
            for path, rows in trained_rows(model).items()
        },
        fan_in_fan_out=any(not isinstance(m.base, nn.Linear) for m in layers.values()),
        meta=meta.model_copy(update={"ranks_start": started}),
    )


def base_reference(path: str, resolved: str, revision: str | None) -> BaseReference:
    """Return the base model's names, and the fingerprint of its files if they are on this disk."""
    files = local_checkpoint(resolved, revision)
    digest = None if files is None else fingerprint(files)
    # a snapshot in the Hub's cache tells id and commit by its path
    hub_id, commit = hub_name(resolved) or (None, None)
    return BaseReference(path, resolved, revision or commit, digest, hub_id)


def trained_modules(model: nn.Module, layers: Mapping[str, LowRankLinear]) -> list[str]:
    """Return the modules outside the adapters that own a trained parameter, in order."""
    adapters = {id(p) for layer in layers.values() for p in layer.parameters()}
    return [
        path
        for path, module in model.named_modules()
        if any(p.requires_grad and id(p) not in adapters for p in module.parameters(recurse=False))
    ]


def head_tensors(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of modules stored in full, by full name; frozen tensors included.

    Tensors that the base checkpoint does not hold are random: a reload without them gives other
    results.
    """
    return {
        f"{path}.{name}": whole(tensor.detach()).cpu().clone()
        for path in head
        for name, tensor in model.get_submodule(path).state_dict().items()
    }
