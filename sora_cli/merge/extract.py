"""Extracts the difference between a fine-tuned model and its base as a plain LoRA adapter.

This reverses a merge, from file to file: one tensor of each model is in memory at a time. Changed
linear layers get low-rank factors (`adapter.dense`), with more rank for larger differences. Other
changes are stored in full. The error is measured on the written files, read back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.keep import Keep
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.card import write_card
from sora_cli.adapter.classes import names_classes, task_type_of
from sora_cli.adapter.companions import copy_companions
from sora_cli.adapter.dense import Progress, cut_dense, measure
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_sora_file, write_sora_file
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.pruning import Layers, Loss
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.saving import base_reference
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_apart
from sora_cli.core.words import first_few
from sora_cli.merge.base import BaseFolder, open_base
from sora_cli.merge.difference import Change, Difference, find_difference, squared_norm
from sora_cli.merge.match import read_stored
from sora_cli.merge.names import checkpoint_runtime
from sora_cli.model.files import MODEL_CONFIG, SORA_FILE
from sora_cli.model.loading import LOCAL_COPY, loading
from sora_cli.model.references import resolve_model_path
from sora_cli.model.tensors import read_tensor

_NOT_OF_THE_MODEL = {
    "_name_or_path", "architectures", "auto_map", "dtype", "finetuning_task", "id2label",
    "label2id", "num_labels", "problem_type", "sora_merged", "torch_dtype", "transformers_version",
    "use_cache",
}  # fmt: skip
"""Keys of config.json that may differ: they do not change the outputs, or an adapter holds them."""


@dataclass(frozen=True)
class Extracted:
    """The result of an extraction.

    Attributes:
        losses: module path -> part of the layer's difference that the factors miss.
        error: relative Frobenius error of the whole difference, including modules stored in full
            and biases left out.
        parameters: numbers in the factors.
        full: paths of the modules stored in full.
        full_parameters: numbers in these modules.
        biases: names of the linear layers' biases stored in full.
        left: names of the biases left out.
        notes: remarks for the user.
    """

    losses: dict[str, Loss]
    error: float
    parameters: int
    full: tuple[str, ...]
    full_parameters: int
    biases: tuple[str, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def total(self) -> Loss:
        """The loss of all layers together."""
        return reduce(add, self.losses.values())


@dataclass(frozen=True)
class Extraction:
    """A checked difference between two models, before factors are computed."""

    model: BaseFolder
    difference: Difference
    outline: Adapter
    reference: str

    def cut(self, output: Path, keep: Keep, progress: Progress) -> AbstractContextManager[Layers]:
        """Compute the factors that a rule keeps, in files beside the output until the block ends.

        Args:
            progress: called with the path of each decomposed module.
        """
        return cut_dense(list(self.difference.layers), self._update, keep, output, progress)

    def adapter(self, layers: Layers) -> Adapter:
        """Return an adapter with these factors."""
        return self.outline.with_layers(layers)

    def write(
        self,
        output: Path,
        layers: Layers,
        entry: Mapping[str, Any],
        *,
        dtype: str,
        force: bool,
        certify: Callable[[Path], Sequence[str]] | None = None,
    ) -> Extracted:
        """Write the adapter atomically, read it back, and measure its error.

        Args:
            entry: lineage entry that describes the choice of the size.
            certify: see `write_card`.
        """
        paths = list(self.difference.layers)
        measured: dict[str, Any] = {}
        rest = self._other_norms()

        # runs before the directory gets its final name: a failure leaves no adapter behind
        def beside(folder: Path) -> None:
            with open_adapter(folder) as back:
                losses = measure(back.layers, paths, self._update)
                live = {path: rank for path, rank in back.meta.ranks.items() if rank}
                measured["parameters"] = sum(r * sum(back.shapes[p]) for p, r in live.items())
            measured["losses"], measured["error"] = losses, _error(losses, *rest)
            self._record(folder, entry, measured)
            copy_companions(self.model.folder, folder)

        write_adapter(
            output,
            self.adapter(layers),
            dtype=dtype,
            force=force,
            beside=beside,
            describe=partial(write_card, certify=certify),
        )
        return Extracted(
            **measured,
            full=self.difference.full,
            full_parameters=sum(math.prod(c.model.shape) for c in self.difference.head.values()),
            biases=tuple(self.difference.biases),
            left=tuple(self.difference.left_out),
            notes=self.difference.notes,
        )

    def _update(self, path: str) -> Tensor:
        """Return the difference of a layer's weights, (out, in), float32."""
        change = self.difference.layers[path]
        assert change.base is not None
        new, old = read_tensor(change.model), read_tensor(change.base)
        # float32 would round the weights before the subtraction, and could lose the difference
        if torch.float64 in (new.dtype, old.dtype):
            update = (new.double() - old.double()).float()
        else:
            update = new.float().sub_(old.float())
        return update.T.contiguous() if path in self.difference.transposed else update

    def _other_norms(self) -> tuple[float, float]:
        """Return the squared norms of the changes stored in full, and of those left out."""
        norms: list[float] = []
        seen: set[str] = set()
        kept = {**self.difference.head, **self.difference.biases}
        for changes in (kept, self.difference.left_out):
            new = [c for c in changes.values() if c.model.name not in seen]  # tied ones count once
            seen.update(change.model.name for change in new)
            norms.append(math.fsum(squared_norm(change) for change in new))
        return norms[0], norms[1]

    def _record(self, folder: Path, how: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Add this extraction and its error to the lineage in the metadata file."""
        meta, base = read_sora_file(folder / SORA_FILE)
        assert base is not None  # it has just been written
        entry: dict[str, Any] = {
            "command": "extract",
            "from": self.reference,
            **how,
            "relative_error": measured["error"],
        }
        if self.difference.left_out:
            entry["left_out"] = len(self.difference.left_out)
        lineage = (*meta.lineage, entry)
        write_sora_file(folder / SORA_FILE, meta.model_copy(update={"lineage": lineage}), base)


def prepare_extract(model: str, base: str, output: Path, *, biases: bool = True) -> Extraction:
    """Compare a fine-tuned model with its base; writes nothing.

    Args:
        output: the adapter's future directory.
        biases: store changed biases of linear layers; False leaves them out.
    """
    sources = [resolve_model_path(reference) for reference in (model, base)]
    check_apart(output, *(Path(source) for source in sources))
    folders = [_open(source) for source in sources]
    configs = [_config(folder) for folder in folders]
    _check_kinds(configs, sources)
    runtime = checkpoint_runtime(configs[0], sources[0])
    new, old = (read_stored(folder.weights) for folder in folders)
    task_type = task_type_of(runtime.class_name)
    difference = find_difference(runtime, new, old, task_type)
    _check_difference(difference, sources)
    difference = difference if biases else difference.without_biases()
    notes = (*difference.notes, *_config_notes(*(folder.raw for folder in folders)))
    reference = base_reference(base, sources[1], None)
    outline = _outline(difference, folders[0], configs[0], runtime.class_name, task_type, reference)
    return Extraction(folders[0], dataclasses.replace(difference, notes=notes), outline, model)


def _open(source: str) -> BaseFolder:
    folder = Path(source)
    if (folder / MODEL_CONFIG).is_file() and "quantization_config" in (
        folder / MODEL_CONFIG
    ).read_text(encoding="utf-8", errors="replace"):
        raise SoraError(f"{source} is quantised: a difference needs unquantised weights",
                        hint="name the unquantised model")  # fmt: skip
    return open_base(source, None)


def _config(folder: BaseFolder) -> Any:
    import transformers

    with loading(folder.source, local_copy=LOCAL_COPY):
        return transformers.AutoConfig.from_pretrained(folder.folder, trust_remote_code=False)


def _check_kinds(configs: list[Any], sources: list[str]) -> None:
    kinds = [config.model_type for config in configs]
    if kinds[0] != kinds[1]:
        raise SoraError(f"{sources[0]} is a {kinds[0]} model, and {sources[1]} a {kinds[1]} model",
                        hint="is it the right base?")  # fmt: skip
    tied = [getattr(config, "tie_word_embeddings", None) for config in configs]
    if tied[0] != tied[1]:
        raise SoraError(
            "tie_word_embeddings differs between the model and the base: the embedding and the "
            "head share a weight in one of them only",
            hint="an adapter cannot change that",
        )


def _check_difference(difference: Difference, sources: list[str]) -> None:
    if not (difference.layers or difference.head or difference.biases):
        raise SoraError(f"{sources[0]} holds the same numbers as {sources[1]}: there is no "
                        "difference to extract")  # fmt: skip
    if not difference.layers:
        others = first_few([*difference.full, *difference.biases])
        raise SoraError(
            f"no linear layer's weight differs, only {others}",
            hint="that is no low-rank difference: use the fine-tuned model as it is",
        )


def _config_notes(model: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Return a note on settings that differ: an adapter holds weights only."""
    keys = (model.keys() & base.keys()) - _NOT_OF_THE_MODEL
    other = sorted(key for key in keys if model[key] != base[key])
    return [f"config.json differs in {first_few(other)}, which an adapter does not store"] * bool(
        other
    )


def _outline(
    difference: Difference,
    folder: BaseFolder,
    config: Any,
    class_name: str,
    task_type: str | None,
    base: BaseReference,
) -> Adapter:
    """Return an adapter without layers, whose other tensors are read on demand."""

    def tensors(changes: Mapping[str, Change]) -> Mapping[str, Tensor]:
        return OnDemand(list(changes), lambda name: read_tensor(changes[name].model))

    return Adapter.of(
        {},
        tensors(difference.head),
        difference.full,
        task_type,
        base,
        biases=tensors(difference.biases),
        fan_in_fan_out=bool(difference.transposed),
        meta=_meta(folder, config, class_name),
    )


def _meta(folder: BaseFolder, config: Any, class_name: str) -> AdapterMeta:
    """Return metadata from the model's own run record; without one, from its configuration."""
    known = read_sora_file(folder.folder / SORA_FILE)[0]
    if known.task is not None:
        kept = ("task", "labels", "num_labels", "problem_type", "max_length", "input_columns",
                "row_recipe")  # fmt: skip
        return AdapterMeta(**{name: getattr(known, name) for name in kept})
    if not names_classes(class_name):
        return AdapterMeta()
    names = getattr(config, "id2label", None)
    classes = int(config.num_labels)
    return AdapterMeta(
        labels=tuple(names.values()) if names and classes > 1 else None,
        num_labels=classes,
        problem_type=getattr(config, "problem_type", None),
    )


def _error(losses: Mapping[str, Loss], full: float, left: float) -> float:
    """Return the relative error of the whole difference.

    Args:
        full: squared norm of the changes stored in full.
        left: squared norm of the changes left out.
    """
    dropped = math.fsum(loss.dropped for loss in losses.values()) + left
    squared = math.fsum(loss.squared for loss in losses.values()) + full + left
    return math.sqrt(dropped / squared) if squared else 0.0
