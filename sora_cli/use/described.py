"""The recipe for new rows: from the model's run, otherwise derived from the model's files.

An adapter of this tool stores the needed part of its recipe in `sora.json`. For other adapters and
models, the recipe is derived from the configurations of adapter and model: the task family from
`task_type` and the model's architecture, the classes from the number and the names of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from methods.registry import builtin_names
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.classes import BARE, auto_class_for, auto_class_of, number_of_labels
from sora_cli.adapter.metadata import AdapterMeta, read_sora_file
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.row_recipe import OF_SCORES, UNKNOWN, recorded_row_recipe
from sora_cli.core.errors import SoraError
from sora_cli.model.base import load_config, telling_names
from sora_cli.model.files import ADAPTER_CONFIG, SORA_FILE
from sora_cli.recipe.families import options_class, task_names
from sora_cli.recipe.load import LoadedRecipe, load_stored
from sora_cli.recipe.reading import PREDICT, Reading, load_read
from sora_cli.recipe.recipe import ModelBlock
from sora_cli.run.precision import settle_precision
from sora_cli.tasks import task_class

_PLAIN_SCORE = "accuracy"
_WRITTEN_TOGETHER = "generation_batch_size"
_OF_GGUF = "AutoModelForCausalLM"
_MULTI_LABEL = "multi_label_classification"


def recipe_for_rows(
    place: Path,
    overrides: Sequence[str] = (),
    *,
    on: str | None = None,
    task: str | None = None,
    batch: int | None = None,
    reading: Reading = PREDICT,
    beside: Sequence[str] = (),
) -> tuple[LoadedRecipe, AdapterMeta]:
    """Return the recipe for reading new rows, and the metadata of `sora.json`.

    Code that comes with a model is run only if an override allows it: a file cannot allow it.

    Args:
        place: directory of an adapter, a delta or a model.
        on: base model; None means the recorded base model.
        task: task family; None means the family by the files, and an error if they do not tell it.
        batch: rows per batch; None means the recipe's own number.
        reading: keys that overrides may change.
        beside: the names of another model's classes, for a model whose own tell nothing.
    """
    meta = read_sora_file(place / SORA_FILE)[0]
    values = recorded_row_recipe(place, meta)
    if values is not None:
        values["model"] |= {"path": UNKNOWN}
    else:
        values = _of_metadata(meta) if meta.task else _of_files(place, on, task)
    names = meta.labels or values["data"].get("label_names") or ()
    if len(names) > 1:  # a base model's names may be those of other classes than an adapter's
        named = telling_names(meta.labels or ()) or beside or telling_names(names)
        values["data"]["label_names"] = list(named or _numbers(names))
    if on is not None:
        values["model"] |= {"path": on, "revision": None}
    values["method"] = {"name": builtin_names()[0]}  # a recipe needs one, but nothing is trained
    named = [] if task is None else [f"task.name={task}"]
    load = partial(load_stored, values, place, place.name)
    return _for_answers(load_read(load, [*named, *overrides], reading), batch), meta


def _of_metadata(meta: AdapterMeta) -> dict[str, Any]:
    length = {} if meta.max_length is None else {"max_length": meta.max_length}
    return {"model": {"path": UNKNOWN}, "task": {"name": meta.task}, "data": length}


def _of_files(place: Path, on: str | None, task: str | None) -> dict[str, Any]:
    """Derive base model, task family and classes from the configurations of adapter and model."""
    adapter = read_adapter(place) if (place / ADAPTER_CONFIG).is_file() else None
    source = on or (adapter.base.name() if adapter else str(place))
    revision = adapter.base.revision if adapter and on is None else None
    config = load_config(ModelBlock(path=source, revision=revision))
    number = number_of_labels(adapter) if adapter else None
    if number is not None:
        config.num_labels = number
    auto = auto_class_for(adapter, config) if adapter else auto_class_of(config)
    # a GGUF file does not record the architecture's class
    if auto == BARE and source.lower().endswith(".gguf"):
        auto = _OF_GGUF
    data = {} if not auto.endswith("Classification") else _classes(config, adapter)
    name = task or _family(auto, config, place)
    if source == str(place) and "reference" in options_class(name).model_fields:
        source = UNKNOWN  # no model is its own reference
    return {
        "model": {"path": source, "revision": revision},
        "task": {"name": name},
        "data": data,
    }


def _family(auto: str, config: Any, place: Path) -> str:
    if getattr(config, "problem_type", None) == _MULTI_LABEL:
        raise SoraError(f"{place} gives several labels to a row, which no task family supports")
    for name in task_names():
        if auto == options_class(name).MODEL_CLASS and task_class(name).is_for(config):
            return name
    raise SoraError(
        f"{place} does not say which task it is for",
        where=f"by its files, it is loaded with {auto}",
        hint=f"add --task TASK: {', '.join(task_names())}",
    )


def _classes(config: Any, adapter: Adapter | None) -> dict[str, Any]:
    """Return the names of the classes."""
    names = [str(config.id2label[number]) for number in sorted(config.id2label)]
    if adapter is not None and adapter.meta.labels:
        names = list(adapter.meta.labels)
    return {"label_names": names} if len(names) > 1 else {}


def _numbers(names: Sequence[str]) -> list[str]:
    return [str(number) for number in range(len(names))]


def _for_answers(loaded: LoadedRecipe, batch: int | None) -> LoadedRecipe:
    """Set the batch size, and replace the metrics by accuracy.

    Nothing is scored, and a metric of the Hub might need a network.
    """
    block, training = loaded.recipe.task, loaded.recipe.training
    options = options_class(block.name)
    changed: dict[str, Any] = {}
    if _PLAIN_SCORE in options.METRICS:
        changed["metrics"] = [_PLAIN_SCORE]
    if batch is not None:
        training = training.model_copy(update={"eval_batch_size": batch})
        if _WRITTEN_TOGETHER in options.model_fields:
            changed[_WRITTEN_TOGETHER] = batch
    kept = {k: v for k, v in (block.model_extra or {}).items() if k not in OF_SCORES}
    task = type(block)(name=block.name, **{**kept, **changed})
    recipe = loaded.recipe.model_copy(update={"task": task, "training": training})
    return settle_precision(replace(loaded, recipe=recipe))
