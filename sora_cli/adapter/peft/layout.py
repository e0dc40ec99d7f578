"""PEFT's layout of a LoRA adapter: its names, and the configurations we write.

`config` reads configurations; the keys of each kind of part stand in `adapter/parts`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from sora_cli.adapter.peft.config import MERGE_HINT
from sora_cli.adapter.peft.patterns import anchored
from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."
AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task type -> transformers' Auto class."""

BASE_LAYER = ".base_layer."
"""Stands before the last part of the name of an adapted module's own parameter."""
PAIR = {".lora_A.weight": "A", ".lora_B.weight": "B"}
TABLE = {".lora_embedding_A": "embedding A", ".lora_embedding_B": "embedding B"}
"""Endings of the keys of a pair of factors, of a layer and of an embedding -> what it is."""
_LONGEST_NAME = 500  # characters
_FOREIGN = {
    ".lora_magnitude_vector": "DoRA's magnitudes of '{}', but use_dora is not set",
    ".lora_B.bias": "a bias added by the adapter of '{}', which is more than a plain LoRA",
    ".token_adapter.": "of trained rows of the embedding '{}', but trainable_token_indices is not "
    "set",
}


def check_name(name: str, where: str) -> None:
    """Check that this could be the name of a model's parameter or module."""
    good = name.isprintable() and not set(name) & set("/\\") and len(name) <= _LONGEST_NAME
    if not good or not all(part.strip() for part in name.split(".")):
        raise SoraError(f"{name[:200]!r} cannot be the name of anything in a model", where=where)


def check_tensor(key: str, tensor: Tensor, where: str) -> None:
    """Check that a floating-point tensor holds neither NaN nor infinity."""
    if tensor.is_floating_point() and tensor.numel():
        wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # no aminmax for float8
        if not all(bool(extreme.isfinite()) for extreme in wide.aminmax()):  # NaN wins both
            raise SoraError(f"'{key}' holds NaN or infinity", where=where)


def pair_keys(path: str, *, embedding: bool = False) -> tuple[str, str]:
    """Return the keys of a module's A and B in the files that we write."""
    a, b = TABLE if embedding else PAIR
    return f"{PREFIX}{path}{a}", f"{PREFIX}{path}{b}"


def side_of(key: str) -> str | None:
    """Return "A" or "B" for one of the keys that `pair_keys` gives; None for any other key."""
    ending = next((end for end in (*PAIR, *TABLE) if key.endswith(end)), None)
    return None if ending is None else ending.removesuffix(".weight")[-1]


def plain_pairs(keys: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return {module path: keys of A and B} for the linear layers in a file that we wrote."""
    first = next(iter(PAIR))
    paths = [k.removeprefix(PREFIX).removesuffix(first) for k in keys if k.endswith(first)]
    return {path: pair for path in paths if (pair := pair_keys(path))[1] in keys}


def written_config(
    ranks: Mapping[str, int],
    *,
    parameters: Collection[str] = (),
    layout: str = "exact",
    base: str,
    revision: str | None,
    task_type: str | None,
    fan_in_fan_out: bool,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the configuration for our adapters: the scaling is in B, so alpha = r everywhere.

    Args:
        ranks: module path -> rank, at least 1 each.
        parameters: the paths in `ranks` that name a parameter.
        layout: one of `core.checks.LAYOUTS`.
        more: entries for what the file holds beside factors.
    """
    largest = max(ranks.values())
    exact = layout == "exact"
    pattern = {anchored(path): r for path, r in ranks.items() if exact and r != largest}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks.keys() - parameters),
        **({"target_parameters": sorted(parameters)} if parameters else {}),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "modules_to_save": None,
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        **more,
    }


def unknown_key(name: str, where: str) -> SoraError:
    """Return the error for a key that belongs to no part of an adapter."""
    for part, meaning in _FOREIGN.items():
        if part in f"{name}.":
            module = name.partition(part.rstrip("."))[0]
            what = f"'{name}' is {meaning.format(module)}"
            return SoraError(what, where=where, hint=MERGE_HINT)
    what = f"'{name}' is neither half of a LoRA pair nor below modules_to_save"
    return SoraError(what, where=where)
