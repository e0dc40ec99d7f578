"""The transformers Auto class of an adapter or a checkpoint, and its number of labels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.peft.layout import AUTO_CLASSES
from sora_cli.adapter.todays_names import todays_layers, todays_names

BARE = "AutoModel"
"""The class without a head; its output is the last hidden state."""

WITHOUT_A_TASK = ("AutoModelForImageClassification", "AutoModelForMultipleChoice")
"""Classes without a task type in PEFT; tried last, for adapters that name no task type."""

_TABLES = {
    "SEQ_TO_SEQ_CAUSAL_LM": "AutoModelForSeq2SeqLM",
    "SPEECH_SEQ_2_SEQ": "AutoModelForSpeechSeq2Seq",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQUENCE_CLASSIFICATION": "AutoModelForSequenceClassification",
    "TOKEN_CLASSIFICATION": "AutoModelForTokenClassification",
    "QUESTION_ANSWERING": "AutoModelForQuestionAnswering",
    "MULTIPLE_CHOICE": "AutoModelForMultipleChoice",
    "IMAGE_CLASSIFICATION": "AutoModelForImageClassification",
    "MASKED_LM": "AutoModelForMaskedLM",
}
"""transformers' tables of class names; a class in several tables belongs to the first."""

_TASKS = {auto: task for task, auto in AUTO_CLASSES.items() if auto != BARE}
_OUTPUT_LAYERS = ("classifier.weight", "score.weight", "out_proj.weight")


def auto_class_of(config: Any) -> str:
    """Return the Auto class of a checkpoint, by the architecture that its configuration names."""
    names = getattr(config, "architectures", None) or [""]
    return _by_name(names[0]) or BARE


def task_type_of(class_name: str) -> str | None:
    """Return PEFT's task type of a model class, such as "SEQ_CLS"; None if PEFT has none."""
    auto = _by_name(class_name)
    return None if auto is None else _TASKS.get(auto)


def auto_class_for(adapter: Adapter, config: Any, others: Iterable[str] = ()) -> str:
    """Return the Auto class for loading an adapter's base model.

    The task type decides. Adapters without one (PEFT has none for images, and does not insist) get
    the first class whose model has every layer and parameter that the adapter holds.

    Args:
        config: the base model's configuration.
        others: classes to try first, such as the class of the model to compare with.
    """
    if adapter.task_type in AUTO_CLASSES:
        return AUTO_CLASSES[adapter.task_type]
    candidates = dict.fromkeys((*others, auto_class_of(config), BARE, *WITHOUT_A_TASK))
    for shapes in (True, False):  # else a class that fits by name: a clearer error follows
        for auto in candidates:
            if _fits(auto, adapter, config, shapes=shapes):
                return auto
    return BARE


def names_classes(class_name: str) -> bool:
    """Return true if the labels in the configuration are the classes of the model's head.

    In other models the configuration holds transformers' two default labels, which mean nothing.
    """
    return (_by_name(class_name) or "").endswith("Classification")


def number_of_labels(adapter: Adapter) -> int | None:
    """Return the number of labels, from the metadata or the head's last layer; None if unknown."""
    meta = adapter.meta
    if meta.labels or meta.num_labels:
        return len(meta.labels) if meta.labels else meta.num_labels
    outputs = (part for name, part in adapter.full.items() if name.endswith(_OUTPUT_LAYERS))
    sizes = [part.shape[0] for part in outputs if len(part.shape) == 2]
    return min(sizes) if sizes else None


def _by_name(class_name: str) -> str | None:
    """Return the Auto class by transformers' tables, or else by the ending of the class name."""
    classes = _classes()
    if class_name in classes:
        return classes[class_name]
    ending = class_name.rpartition("For")[2]
    matches = (auto for auto in _TABLES.values() if auto.removeprefix("AutoModelFor") == ending)
    return next(matches, None)


@cache
def _classes() -> dict[str, str]:
    """Return {class name in the tables: its Auto class}."""
    # transformers has no public way to ask which Auto class a class of a model belongs to
    from transformers.models.auto import modeling_auto

    classes: dict[str, str] = {}
    for table, auto in _TABLES.items():
        for entry in getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").values():
            for name in (entry,) if isinstance(entry, str) else entry:
                classes.setdefault(name, auto)
    return classes


def _fits(auto: str, adapter: Adapter, config: Any, *, shapes: bool) -> bool:
    """Return true if a model of that class has all layers and parameters of the adapter.

    The model is built on the meta device, without memory for its weights.

    Args:
        shapes: tensors stored in full must also have the shape that they have in the model.
    """
    import transformers

    try:
        with torch.device("meta"):  # shapes and names only: no memory, no random numbers
            model: nn.Module = getattr(transformers, auto).from_config(config)
    except ValueError:  # no such class for this kind of model
        return False
    modules = {path for path, _ in model.named_modules()}
    state = model.state_dict()
    layers, head = todays_layers(model, adapter.parts), todays_names(model, adapter.full)
    modules.update(state)  # an expert's layer is a parameter
    if not (modules.issuperset(layers.values()) and state.keys() >= set(head.values())):
        return False
    return not shapes or all(
        state[head[name]].shape == part.shape for name, part in adapter.full.items()
    )
