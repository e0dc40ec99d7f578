"""Transformers' names that it promises to nobody: a new version of it is mended here.

Those of its Trainer are in `train/checkpoint/trainer_internals.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from torch import Tensor


def let_trainer_train(model: Any) -> None:
    """Tell Trainer that a quantised model holds something else to train.

    `Trainer` refuses a quantised model (`validate_quantization_for_training`) unless PEFT has set
    this mark; our adapters are in the model, but PEFT knows nothing of them.
    """
    model._hf_peft_config_loaded = True


def optional_weights(model: Any) -> tuple[str, ...]:
    """Return the regular expressions of weights that a checkpoint need not hold."""
    return tuple(model._keys_to_ignore_on_load_missing or ())


def attention_of(config: Any) -> str | None:
    """Return the implementation of attention that a configuration names, such as "sdpa"."""
    found: str | None = getattr(config, "_attn_implementation", None)
    return found


def flash_kernels(auto: Any, config: Any) -> tuple[str, ...]:
    """Return the only flash kernels that a model's class runs with; none where any will do.

    Args:
        auto: the class of transformers by which a model is loaded, such as `AutoModel`.
    """
    kinds = auto._model_mapping
    kind = kinds.get(type(config), None)
    return tuple(getattr(kind, "_compatible_flash_implementations", None) or ())


def kernel_versions() -> str:
    """Return the versions of the package kernels that transformers works with, as pip has it."""
    from transformers.utils import import_utils

    first, end = (
        getattr(import_utils, f"KERNELS_{which}_VERSION", None) for which in ("MIN", "MAX")
    )
    return f">={first},<{end}" if first and end else ""


def takes_any_kernel() -> bool:
    """Tell whether transformers asks before it runs a kernel of authors that it does not know."""
    from transformers import PreTrainedModel

    return "allow_all_kernels" in signature(PreTrainedModel.set_attn_implementation).parameters


class RenamingRules:
    """The renamings of one pass over a checkpoint; some of them remember what they have seen."""

    def __init__(self, model: Any) -> None:
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import (
                WeightConverter,
                WeightRenaming,
                dot_natural_key,
                rename_source_key,
            )
        except ImportError as error:
            raise SoraError(
                f"this version of transformers does not say how it renames weights: {error}",
                hint="pip install --upgrade transformers",
            ) from error
        mapping = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
        self._rename, self._key = rename_source_key, dot_natural_key

    def order(self, names: Iterable[str]) -> list[str]:
        """Sort names in the order in which `from_pretrained` takes them."""
        return sorted(names, key=self._key)

    def prefix_only(self, name: str, prefix: str, state: Mapping[str, Tensor]) -> str:
        """Add the backbone's prefix to a name or take it away, where that is needed."""
        return str(self._rename(name, [], [], prefix, state)[0])

    def rename(
        self, name: str, prefix: str | None = None, state: Mapping[str, Tensor] | None = None
    ) -> tuple[str, Any]:
        """Return the new name, and the converter that takes the tensor, if one does."""
        renamed, pattern = self._rename(name, self._renamings, self._converters, prefix, state)
        if pattern is None:
            return renamed, None
        return renamed, next(c for c in self._converters if pattern in c.source_patterns)
