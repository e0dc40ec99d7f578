"""Write a run's result, and load it onto its base model for scoring.

A baseline's result is either the tensors that differ from the base model, or a whole model:

delta/  delta.safetensors   the head and the other trained tensors, by their names in the model
        sora.json           method, base model with its fingerprint, labels, as in an adapter
model/  a transformers model directory with its tokenizer, and sora.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from methods.base import LowRankLinear
from methods.baselines import Baseline
from methods.sharding import is_sharded, whole
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.base_check import check_weights
from sora_cli.adapter.in_model import load_head
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_sora_file, write_sora_file
from sora_cli.adapter.moved import located
from sora_cli.adapter.peft.layout import check_tensor
from sora_cli.adapter.places import DELTA, MODEL
from sora_cli.adapter.saving import head_tensors
from sora_cli.core.atomic import check_read_back, new_directory
from sora_cli.core.console import say_notes
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.hub import quiet_loading
from sora_cli.core.processes import is_main
from sora_cli.core.shell import quote
from sora_cli.core.words import first_few, listed
from sora_cli.model.base import Base, load_base, names_agree, telling_names
from sora_cli.model.files import DELTA_FILE, MODEL_CONFIG, SORA_FILE
from sora_cli.model.references import local_checkpoint
from sora_cli.model.tensors import load_tensors
from sora_cli.recipe.recipe import ModelBlock, Recipe
from sora_cli.tasks.base import Task
from sora_cli.train.checkpoint.files import cpu_copy

_PUT_BACK = "restore the original base model, or train again"


def write_baseline(
    output: Path,
    method: Baseline,
    base: Base,
    meta: AdapterMeta,
    reference: BaseReference,
    beside: Callable[[Path], None],
) -> Path:
    """Write a baseline's result into a run's directory, atomically; every process must call it.

    Tensors that are not finite are refused, and the written file is read back and compared.

    Args:
        beside: writes more files into the result's directory.

    Returns:
        `output/delta` or `output/model`.
    """
    directory = output / (MODEL if method.whole_model else DELTA)
    tensors = _tensors(base, method)
    if not is_main():
        return directory
    for name, tensor in tensors.items():
        check_tensor(name, tensor, f"for {directory}")
    marker = MODEL_CONFIG if method.whole_model else DELTA_FILE
    try:
        with new_directory(directory, force=True, markers=(marker,)) as folder:
            if method.whole_model:
                _write_model(folder, base, tensors)
            else:
                save_file(tensors, folder / DELTA_FILE)
                _check(tensors, load_tensors(folder / DELTA_FILE), directory)
            write_sora_file(folder / SORA_FILE, meta, reference)
            beside(folder)
    except (OSError, SafetensorError) as error:
        raise SoraError(f"{directory} cannot be written: {first_line(error)}") from error
    return directory


def load_baseline(folder: Path, recipe: Recipe, task: Task) -> Base:
    """Load a delta on its base model, or a whole model."""
    if (folder / DELTA_FILE).is_file():
        return load_delta(folder, recipe, task)
    return load_base(recipe.model.model_copy(update={"path": str(folder), "revision": None}), task)


@torch.no_grad()
def load_delta(folder: Path, recipe: Recipe, task: Task, *, on: str | None = None) -> Base:
    """Load the base model, and put a delta's tensors into the model.

    A delta for other classes is refused. So are base weights other than the delta was trained on,
    unless the user names the base model.

    Args:
        on: the base model named by the user, used with a note if its weights differ; None: the base
            model named in the delta.
    """
    meta, reference = read_sora_file(folder / SORA_FILE)
    if reference is None:
        raise SoraError(f"{folder / SORA_FILE} does not say which base model the delta is of")
    check_classes("delta", meta.labels, task)
    base = _load_base_of(folder, reference, recipe, task, on)
    try:
        tensors = load_tensors(folder / DELTA_FILE)
    except (OSError, SafetensorError) as error:
        raise SoraError(f"{folder / DELTA_FILE} cannot be read: {first_line(error)}") from error
    load_head(base.model, tensors, what="delta")
    return base


def _tensors(base: Base, method: Baseline) -> dict[str, Tensor]:
    """Return the tensors that differ from the base, by all their names; or a whole model's."""
    if method.whole_model:
        return {name: whole(t.detach()) for name, t in base.model.state_dict().items()}
    chosen = {id(p) for p in method.parameters.values()}
    named = base.model.named_parameters(remove_duplicate=False)
    trained = {name: cpu_copy(p) for name, p in named if id(p) in chosen}
    return {**trained, **head_tensors(base.model, base.head)}


def _write_model(folder: Path, base: Base, tensors: dict[str, Tensor]) -> None:
    """Write as `save_pretrained` does; from whole tensors if processes share them."""
    sharded = any(is_sharded(p) for p in base.model.parameters())
    with quiet_loading():
        base.model.save_pretrained(folder, state_dict=tensors if sharded else None)
        base.processor.save_pretrained(folder)


def _check(meant: dict[str, Tensor], back: dict[str, Tensor], where: Path) -> None:
    same = back.keys() == meant.keys() and all(torch.equal(back[n], meant[n]) for n in meant)
    check_read_back(same, where)


def check_base(
    base: Base,
    reference: BaseReference,
    result: str | Path,
    *,
    force: bool = False,
    hint: str = _PUT_BACK,
) -> tuple[str, ...]:
    """Refuse a base model with other weights than a result records; see `check_weights`.

    Args:
        result: the adapter or delta that needs the base model, for the error.

    Returns:
        A note if the weights are not known to be the same.
    """
    files = local_checkpoint(base.resolved, base.revision)
    note = check_weights(reference, files, base.resolved, result, force=force, hint=hint)
    return () if note is None else (note,)


def load_adapted(
    adapter: Adapter, recipe: Recipe, task: Task, *, on: str | None = None, strict: bool = False
) -> tuple[Base, dict[str, LowRankLinear]]:
    """Load an adapter on its base model; also return the adapted layers.

    An adapter for other classes is refused. So are base weights other than the adapter was trained
    on, unless the user names the base model.

    Args:
        on: the base model named by the user, used with a note if its weights differ; None: the base
            model named in the adapter.
        strict: refuse different weights also with `on`.
    """
    check_classes("adapter", adapter.meta.labels, task)
    if task.reference is not None:
        named = adapter.meta.row_recipe.get("task", {}).get("reference", "DIR")
        task.reference.check_same(adapter.meta.reference, named)
        if adapter.head:
            raise SoraError(
                f"the adapter stores {first_few(adapter.head)} in full, so the base model that its "
                "rewards are measured against is not in memory",
                hint="sora merge writes a merged model, which can be scored",
            )
    # the adapter knows its new tokens, whatever recipe it is scored by
    tokens = {"model": recipe.model.model_copy(update={"new_tokens": adapter.meta.new_tokens})}
    recipe = recipe.model_copy(update=tokens)
    base = _load_base_of("the adapter", adapter.base, recipe, task, on, strict=strict)
    for path, rows in adapter.rows.items() if base.new_tokens else ():
        if rows.indices != base.new_tokens:
            raise SoraError(
                f"the adapter's rows of '{path}' are not those that its new tokens have here",
                where=f"{[*rows.indices]} in the adapter, {list(base.new_tokens)} here",
                hint=_PUT_BACK,
            )
    return base, apply_adapter(base.model, adapter)


def _load_base_of(
    result: str | Path,
    reference: BaseReference,
    recipe: Recipe,
    task: Task,
    on: str | None,
    *,
    strict: bool = False,
) -> Base:
    block = base_block(recipe, reference, on)
    base = load_base(block, task, precision=recipe.training.precision)
    hint = _PUT_BACK if on is None else "name its own base model: model.path=MODEL"
    force = on is not None and not strict
    notes = check_base(base, reference, result, force=force, hint=hint)
    say_notes(notes)
    return replace(base, notes=notes)


def base_block(recipe: Recipe, reference: BaseReference, on: str | None) -> ModelBlock:
    """Return the recipe's model block with the path of a result's base model on this machine."""
    if on is not None:
        return recipe.model.model_copy(update={"path": on, "revision": None})
    known = located(reference)
    name = known.path if "://" in known.path else known.name()
    return recipe.model.model_copy(update={"path": name, "revision": known.revision})


def check_classes(what: str, known: Sequence[str] | None, task: Task) -> None:
    """Refuse classes other than the task's: names and order must be the same.

    Classes of a model whose names tell nothing (see `telling_names`) are the task's by their order.
    """
    own = task.label_names or []
    if known is None or list(known) == own:
        return
    if names_agree(known, own) and not telling_names(known):
        return
    # labels that are numbers can get any names, and texts can be put in any order
    words = quote(f"data.label_names={json.dumps(list(known), ensure_ascii=False)}")
    hint = f"if the data's labels mean these: {words}"
    if telling_names(own) and len(known) == len(own) and sorted(known) != sorted(own):
        hint = f"if they mean the same in this order, write the recipe's into the {what}'s files"
    raise SoraError(
        f"the {what}'s classes are {listed(known)}",
        where=f"the recipe's: {listed(own or ['none'])}",
        hint=hint if own else None,
    )
