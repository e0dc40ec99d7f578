"""Find the format of another program's file; some formats are recognised only to be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sora_cli.adapter.foreign import diffusers, kohya, mlx
from sora_cli.adapter.foreign.contents import Contents, Reader, Source
from sora_cli.adapter.peft.layout import PREFIX
from sora_cli.core.errors import SoraError


def _torchtune(source: Source) -> Contents | None:
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


def _litgpt(source: Source) -> Contents | None:
    """Refuse litgpt's names (litgpt/lora.py): query, key and value are in one matrix there."""
    own = ("transformer.h.", "lm_head.")
    if not any(k.startswith(own) and k.endswith((".lora_A", ".lora_B")) for k in source.keys):
        return None
    raise SoraError(
        "its query, key and value are in one matrix, in an order of its own",
        where=source.where,
        hint="litgpt merge_lora, then litgpt convert_from_litgpt, gives a model without an adapter",
    )


def _peft(source: Source) -> Contents | None:
    """Refuse PEFT's tensors without the configuration that says their scaling."""
    if not any(key.startswith(PREFIX) for key in source.keys):
        return None
    raise SoraError(
        "PEFT's tensors need the adapter_config.json that was written with them",
        where=source.where,
        hint="name the directory with both, the tensors as adapter_model.safetensors",
    )


_READERS: Mapping[str, Reader] = {
    "Kohya": kohya.read,
    "diffusers": diffusers.read,
    "MLX": mlx.read,
    "torchtune": _torchtune,
    "litgpt": _litgpt,
    "PEFT": _peft,
}
_FUSE = {
    "Kohya": "sd-scripts' networks/merge_lora.py, or the program that wrote it, merges it into its "
    "model",
    "diffusers": "pipeline.load_lora_weights() and fuse_lora() merge it into its model",
    "MLX": "mlx_lm.fuse merges it into its model",
}


def read_contents(source: Source) -> Contents:
    """Recognise a file by its keys and read its content."""
    for name, read in _READERS.items():
        try:
            contents = read(source)
        except SoraError as error:
            raise SoraError(
                f"this is an adapter file of {name}: {error.what}",
                where=error.where,
                hint=error.hint or _FUSE.get(name),
            ) from error
        if contents is not None:
            return contents
    first: Any = source.keys[0][:120] if source.keys else None
    raise SoraError(
        f"this file has no known adapter format: its first tensor is {first!r}",
        where=source.where,
        hint=f"known formats: {', '.join(_READERS)}; to name a model, give its directory",
    )
