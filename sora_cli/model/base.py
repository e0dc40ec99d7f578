"""Load a recipe's base model with its tokenizer or processor, and find its head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from methods.inject import output_embedding
from sora_cli.core.errors import SoraError
from sora_cli.core.hub import quiet_hub
from sora_cli.data.processor import load_processor
from sora_cli.model.attention import (
    asking_for,
    attention_options,
    check_config,
    check_device,
    usual_attention,
)
from sora_cli.model.files import check_complete, check_quantised, check_source
from sora_cli.model.loading import loading, split_gguf, weights_options
from sora_cli.model.new_tokens import add_rows, add_to_tokenizer
from sora_cli.model.quantisation import check_quantise, prepare_quantised, quantised_options
from sora_cli.model.references import commit_of, resolve_model_path
from sora_cli.recipe.recipe import ModelBlock
from sora_cli.tasks.base import Task


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    Attributes:
        processor: makes the model's inputs: a tokenizer, or an image processor.
        reference: the name in the recipe; `resolved` is the local path or Hub id behind it.
        revision: the Hub's commit behind the recipe's branch; None for a local directory.
        missing: parameters that the checkpoint lacks, and that are therefore random.
        head: paths of modules trained in full: the head, and the modules of `missing`.
        classes: class names in the checkpoint's own configuration, in label order; None: it has
            none.
        notes: cautions about the model's answers, for the user.
        new_tokens: ids of `model.new_tokens`.
    """

    model: Any
    processor: Any
    reference: str
    resolved: str
    revision: str | None
    missing: tuple[str, ...]
    head: tuple[str, ...]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    new_tokens: tuple[int, ...] = ()


def load_base(
    block: ModelBlock, task: Task, *, dropout: float | None = None, precision: str = "fp32"
) -> Base:
    """Load a model and its processor for a task; a new head is drawn from torch's own generator.

    Args:
        dropout: for every dropout in the base model's configuration; None: leave them unchanged.
        precision: of products with quantised weights, as in `training.precision`.
    """
    import transformers

    quiet_hub()
    check_quantise(block)
    check_device(block, precision)
    resolved, source, gguf = _located(block)
    common = _shared_options(block, gguf)
    with loading(block.path, resolved, purpose=f" for {task.name}"):
        config = transformers.AutoConfig.from_pretrained(source, **common)
        if not gguf:
            check_quantised(block.path, config)
        classes = _named_classes(config)
        options = {**task.model_options(), **_dropouts(config, dropout)}
        for key, value in options.items():
            setattr(config, key, value)
        auto = getattr(transformers, task.options.MODEL_CLASS)
        check_config(block, config, auto)
        with asking_for(block):
            model, info = auto.from_pretrained(
                source,
                config=config,
                dtype=_dtype(block.dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `_check_shapes` refuses them by name
                **common,
                **attention_options(block),
                **weights_options(gguf),
                **_packing(block, task, config, precision),
            )
        _check_shapes(block.path, info["mismatched_keys"], model.base_model_prefix)
        check_complete(block.path, info["missing_keys"], len(model.state_dict()))
        processor = load_processor(task.options.PROCESSOR_CLASS, source, common)
        new = add_to_tokenizer(processor, block.new_tokens)
        if new:
            add_rows(model, new)
    # by name, for a fixed order: transformers reports missing keys as a set
    unread = task.options.UNREAD
    missing = tuple(sorted(k for k in info["missing_keys"] if k.partition(".")[0] not in unread))
    head = head_modules(model, missing, new_head=task.options.TRAINS_HEAD)
    prepare_quantised(model, block.path, head)
    with usual_attention(model, on_gpus=True):
        task.adapt_model(model, processor)  # it may run the model, on this device
    return Base(
        model=model,
        processor=processor,
        reference=block.path,
        resolved=resolved,
        revision=commit_of(resolved, block.revision) or block.revision,
        missing=missing,
        head=head,
        classes=classes,
        new_tokens=tuple(new),
    )


def load_config(block: ModelBlock) -> Any:
    """Load only a model's configuration."""
    import transformers

    quiet_hub()
    resolved, source, gguf = _located(block)
    with loading(block.path, resolved):
        return transformers.AutoConfig.from_pretrained(source, **_shared_options(block, gguf))


def load_inputs(block: ModelBlock, task: Task) -> tuple[Any, Any]:
    """Load a model's configuration and its tokenizer or processor, without the weights."""
    import transformers

    quiet_hub()
    resolved, source, gguf = _located(block)
    common = _shared_options(block, gguf)
    with loading(block.path, resolved, purpose=f" for {task.name}"):
        config = transformers.AutoConfig.from_pretrained(source, **common)
        return config, load_processor(task.options.PROCESSOR_CLASS, source, common)


def load_own_processor(block: ModelBlock, auto: str) -> Any:
    """Load a model's tokenizer or processor alone.

    Args:
        auto: transformers' Auto class, as for `load_processor`.
    """
    quiet_hub()
    resolved, source, gguf = _located(block)
    with loading(block.path, resolved):
        return load_processor(auto, source, _shared_options(block, gguf))


def _located(block: ModelBlock) -> tuple[str, str, dict[str, Any]]:
    """Return a model's resolved place, the source for transformers, and options for a GGUF file."""
    resolved = resolve_model_path(block.path)
    check_source(block.path, resolved)
    return (resolved, *split_gguf(resolved))


def _shared_options(block: ModelBlock, gguf: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments shared by the loading of configuration, weights and processor."""
    revision = {} if block.revision is None else {"revision": block.revision}
    return {"trust_remote_code": block.trust_remote_code, **gguf, **revision}


def head_modules(
    model: nn.Module, missing: Iterable[str], *, new_head: bool = True
) -> tuple[str, ...]:
    """Return the paths of modules that are trained in full, in the model's order.

    These are the modules outside the backbone, the backbone's pooler (only a head reads it), and
    the modules with parameters that the checkpoint lacks.
    """
    prefix = getattr(model, "base_model_prefix", "")
    backbone = getattr(model, prefix, None) if prefix else None
    heads = set()
    if new_head and isinstance(backbone, nn.Module):
        heads = {n for n, m in model.named_children() if m is not backbone and _has_parameters(m)}
        pooler = getattr(backbone, "pooler", None)
        if isinstance(pooler, nn.Module) and _has_parameters(pooler):
            heads.add(f"{prefix}.pooler")
    for key in missing:
        owner = key.rpartition(".")[0]
        if owner and not any(owner == h or owner.startswith(f"{h}.") for h in heads):
            heads.add(owner)
    return tuple(path for path, _ in model.named_modules() if path in heads)


def telling_names(names: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of classes, in label order; () if they tell no more than the numbers do.

    transformers writes LABEL_0, LABEL_1, ... for classes without names, and data sets with numbers
    for labels have 0, 1, ...
    """
    found = tuple(map(str, names))
    numbers = [str(number) for number in range(len(found))]
    return () if [name.removeprefix("LABEL_") for name in found] == numbers else found


def names_agree(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Return True if classes are the same, or the names of one of them tell nothing.

    The same names in another order do not agree: 1, 0 exchanges the classes of 0, 1.
    """
    first, second = list(map(str, one)), list(map(str, other))
    if first == second:
        return True
    telling = telling_names(first) and telling_names(second)
    return not telling and len(first) == len(second) and sorted(first) != sorted(second)


def _named_classes(config: Any) -> tuple[str, ...] | None:
    """Return the class names in a configuration; None if they tell nothing."""
    names = getattr(config, "id2label", None) or {}
    return telling_names(names[number] for number in sorted(names)) or None


def _packing(block: ModelBlock, task: Task, config: Any, precision: str) -> dict[str, Any]:
    """Return the options that quantise a model except for its head and its output embeddings."""
    import transformers

    if block.quantise is None:
        return {}
    code = {"trust_remote_code": block.trust_remote_code}
    # bitsandbytes wants the names of modules to leave out before the model exists: build it
    # without memory, and without draws from the run's generator
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        shape = getattr(transformers, task.options.MODEL_CLASS).from_config(config, **code)
    output = output_embedding(shape)
    plain = head_modules(shape, (), new_head=task.options.TRAINS_HEAD)
    plain += tuple(path for path, module in shape.named_modules() if module is output)
    return quantised_options(block, precision=precision, config=config, plain=plain)


def _dtype(name: str) -> Any:
    return "auto" if name == "auto" else getattr(torch, name)


def _dropouts(config: Any, value: float | None) -> dict[str, float]:
    """Return every dropout probability of a configuration, set to one value."""
    if value is None:
        return {}
    numbers = {k: v for k, v in config.to_dict().items() if isinstance(v, float | int)}
    return {k: value for k in numbers if "dropout" in k or k.endswith("_pdrop")}


def _check_shapes(
    reference: str, mismatched: Iterable[tuple[str, Any, Any]], backbone: str
) -> None:
    """Refuse tensors of a wrong shape; outside the backbone they are a head for other classes."""
    for key, stored, wanted in sorted(mismatched, key=str):
        inside = bool(backbone) and key.startswith(f"{backbone}.")
        what = "its config.json" if inside else "the task's classes"
        raise SoraError(
            f"model '{reference}' does not fit {what}: its "
            f"'{key}' is {tuple(stored)}, not {tuple(wanted)}",
            hint="check that config.json and the weights belong to the same model"
            if inside
            else "use the model without its head, or data with the head's classes",
            key="model.path",
        )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
