"""The formats there are, and which one a file is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sora_cli.adapter.foreign import diffusers, kohya, mlx, unread
from sora_cli.adapter.foreign.contents import Contents, Reader, Source
from sora_cli.core.errors import SoraError

_READERS: Mapping[str, Reader] = {
    "Kohya": kohya.read,
    "diffusers": diffusers.read,
    "MLX": mlx.read,
    "torchtune": unread.torchtune,
    "litgpt": unread.litgpt,
    "PEFT": unread.peft,
}
_FUSE = {
    "Kohya": "sd-scripts' networks/merge_lora.py folds it into its model, as does the program that "
    "wrote it",
    "diffusers": "pipeline.load_lora_weights() and fuse_lora() fold it into its model",
    "MLX": "mlx_lm.fuse folds it into its model",
}


def read_contents(source: Source) -> Contents:
    """Recognise a file by its keys and read what is in it.

    Raises:
        SoraError: of no known format; or of one, and why it cannot be read.
    """
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
        f"this file is of no known adapter format: its first tensor is {first!r}",
        where=source.where,
        hint=f"known are the files of {', '.join(_READERS)}; a model is named by its directory",
    )
