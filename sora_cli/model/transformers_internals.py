"""Private names of transformers; adapt this file to its new versions.

Private names of its Trainer are in `train/checkpoint/trainer_internals.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


def let_trainer_train(model: Any) -> None:
    """Mark a quantised model as one with trainable parameters beside its quantised ones.

    `Trainer` refuses a quantised model (`validate_quantization_for_training`) unless PEFT has set
    this mark; our adapters are in the model, but PEFT does not know of them.
    """
    # transformers 5.24 has no public way: it asks only for this attribute
    # until: transformers > 5.24
    model._hf_peft_config_loaded = True


def optional_weights(model: Any) -> tuple[str, ...]:
    """Return the regular expressions of weights that a checkpoint may lack."""
    return tuple(model._keys_to_ignore_on_load_missing or ())


def attention_of(config: Any) -> str | None:
    """Return the attention implementation named in a configuration, such as "sdpa"."""
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


def flash_kernels(auto: Any, config: Any) -> tuple[str, ...]:
    """Return the flash kernels that a model's class is limited to; empty: it is not limited.

    Args:
        auto: the class of transformers that loads the model, such as `AutoModel`.
    """
    kinds = auto._model_mapping
    kind = kinds.get(type(config), None)
    return tuple(getattr(kind, "_compatible_flash_implementations", None) or ())


class ExpertPlace(NamedTuple):
    """The place of one expert's weight in a parameter that joins several weights of all experts."""

    expert: int
    part: int
    """Number of the weight in the joined order, such as 1 for the second of gate and up."""
    parts: int


def expert_place(converter: Any, name: str) -> ExpertPlace | None:
    """Return the place of a tensor that a converter stacks, expert by expert.

    None for any other conversion, and for names that do not show the expert's number.
    """
    from transformers.core_model_loading import Concatenate, MergeModulelist

    # the experts become the first dimension, and the weights of one expert are put below each other
    known = ((MergeModulelist, 0), (Concatenate, 1))
    patterns, operations = converter.source_patterns, converter.operations
    if len(operations) != min(len(patterns), 2) or not all(
        type(operation) is kind and operation.dim == dim
        for operation, (kind, dim) in zip(operations, known, strict=False)
    ):
        return None
    for part, pattern in enumerate(patterns):
        end = re.escape(pattern.partition("*")[2].removesuffix("$"))
        number = re.search(rf"\.(\d+){end}$", name)
        if number is not None and end:
            return ExpertPlace(int(number[1]), part, len(patterns))
    return None


class RenamingRules:
    """The renamings for one pass over a checkpoint; some of them keep state between names."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        mapping = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
        self._rename, self._key = rename_source_key, dot_natural_key

    def order(self, names: Iterable[str]) -> list[str]:
        """Sort names in the order of `from_pretrained`."""
        return sorted(names, key=self._key)

    def prefix_only(self, name: str, prefix: str, state: Mapping[str, Tensor]) -> str:
        """Add the backbone's prefix to a name, or remove it, as the model requires."""
        return str(self._rename(name, [], [], prefix, state)[0])

    def rename(
        self, name: str, prefix: str | None = None, state: Mapping[str, Tensor] | None = None
    ) -> tuple[str, Any]:
        """Return the new name, and the converter for the tensor (None: there is none)."""
        renamed, pattern = self._rename(name, self._renamings, self._converters, prefix, state)
        if pattern is None:
            return renamed, None
        return renamed, next(c for c in self._converters if pattern in c.source_patterns)
