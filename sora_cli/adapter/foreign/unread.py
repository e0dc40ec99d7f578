"""Formats that are known by their keys, and are not read."""

from __future__ import annotations

from sora_cli.adapter.foreign.contents import Contents, Source
from sora_cli.adapter.peft.layout import PREFIX
from sora_cli.core.errors import SoraError


def torchtune(source: Source) -> Contents | None:
    """Refuse torchtune's own names (torchtune/models/convert_weights.py).

    Its rows of query and key are in another order than transformers', by the number of heads.
    """
    if not any(key.endswith((".lora_a.weight", ".lora_b.weight")) for key in source.keys):
        return None
    raise SoraError(
        "its rows of queries and keys are in another order than transformers'",
        where=source.where,
        hint="torchtune's FullModelHFCheckpointer writes PEFT's files beside it: name the "
        "directory with adapter_config.json",
    )


def litgpt(source: Source) -> Contents | None:
    """Refuse litgpt's names (litgpt/lora.py), whose query, key and value are in one matrix."""
    own = ("transformer.h.", "lm_head.")
    if not any(k.startswith(own) and k.endswith((".lora_A", ".lora_B")) for k in source.keys):
        return None
    raise SoraError(
        "its query, key and value are in one matrix, in an order of its own",
        where=source.where,
        hint="litgpt merge_lora, then litgpt convert_from_litgpt, gives a model without an adapter",
    )


def peft(source: Source) -> Contents | None:
    """Refuse PEFT's tensors without the configuration that says their scaling."""
    if not any(key.startswith(PREFIX) for key in source.keys):
        return None
    raise SoraError(
        "PEFT's tensors need the adapter_config.json that was written with them",
        where=source.where,
        hint="name the directory with both, the tensors as adapter_model.safetensors",
    )
