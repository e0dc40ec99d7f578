"""Which transformers Auto class an adapter or a checkpoint belongs to, and with how many labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sora_cli.adapter import Adapter

BARE = "AutoModel"
"""The class without a head, whose output is the last hidden state."""

_BY_TASK = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": BARE,
}
_BY_ENDING = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
}
_TASKS = {auto: task for task, auto in _BY_TASK.items() if auto != BARE}
_OUTPUT_LAYERS = ("classifier.weight", "score.weight", "out_proj.weight")


def auto_class_of(config: Any) -> str:
    """The Auto class of a checkpoint, by the architecture its configuration names."""
    names = getattr(config, "architectures", None) or [""]
    return _by_name(names[0]) or BARE


def task_type_of(class_name: str) -> str | None:
    """PEFT's task type of a model class, such as "SEQ_CLS"; None where PEFT has none for it."""
    auto = _by_name(class_name)
    return None if auto is None else _TASKS.get(auto)


def auto_class_for(adapter: Adapter, config: Any, others: Iterable[str] = ()) -> str:
    """The Auto class an adapter is for.

    By its task type. Adapters without one (PEFT knows none for images, and does not insist on
    one) get the first class whose model has every layer and parameter the adapter names.

    Args:
        config: the base model's configuration.
        others: classes to try first, such as that of the model to compare with.
    """
    if adapter.task_type in _BY_TASK:
        return _BY_TASK[adapter.task_type]
    candidates = (*others, auto_class_of(config), BARE, "AutoModelForImageClassification")
    fitting = (auto for auto in dict.fromkeys(candidates) if _fits(auto, adapter, config))
    return next(fitting, BARE)


def number_of_labels(adapter: Adapter) -> int | None:
    """From the metadata, else from the head's last layer; None where neither tells."""
    meta = adapter.meta
    if meta.labels or meta.num_labels:
        return len(meta.labels) if meta.labels else meta.num_labels
    outputs = (adapter.head[name] for name in adapter.head if name.endswith(_OUTPUT_LAYERS))
    sizes = [t.shape[0] for t in outputs if t.ndim == 2]
    return min(sizes) if sizes else None


def _by_name(class_name: str) -> str | None:
    found = (auto for ending, auto in _BY_ENDING.items() if class_name.endswith(ending))
    return next(found, None)


def _fits(auto: str, adapter: Adapter, config: Any) -> bool:
    """Whether that class, built without memory for its weights, has all the adapter's names."""
    import transformers

    try:
        with torch.device("meta"):
            model: nn.Module = getattr(transformers, auto).from_config(config)
    except ValueError:  # no such class for this kind of model
        return False
    modules = {path for path, _ in model.named_modules()}
    return adapter.layers.keys() <= modules and adapter.head.keys() <= model.state_dict().keys()
