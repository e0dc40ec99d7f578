"""What an encoder-decoder must say of itself, and how long its texts may be."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import nn

from sora_cli.errors import SoraError


@dataclass(frozen=True)
class Room:
    """Tokens that each side has positions for; unlimited where they are computed."""

    encoder: int = sys.maxsize
    decoder: int = sys.maxsize


def room_of(model: nn.Module) -> Room:
    """The room in a model's tables of absolute positions; T5 has none, BART one a side."""
    found = {"encoder": sys.maxsize, "decoder": sys.maxsize}
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.endswith("embed_positions"):
            side = "decoder" if "decoder" in path.split(".") else "encoder"
            found[side] = module.num_embeddings - int(getattr(module, "offset", 0))
    return Room(**found)


def check_room(what: str, longest: int, room: int, key: str) -> None:
    """Texts must fit.

    Args:
        what: "source" or "target".
        longest: tokens of the longest one, cut as `key` of the recipe says.

    Raises:
        SoraError: they do not.
    """
    if longest > room:
        raise SoraError(
            f"a {what} of {longest} tokens does not fit the model, which has {room} positions",
            hint=f"{key}={room}",
            key=key,
        )


def check_start(model: Any) -> None:
    """Which token the decoder begins with must be known.

    Raises:
        SoraError: neither configuration of the model names one.
    """
    if getattr(model.config, "decoder_start_token_id", None) is None:
        start = model.generation_config.decoder_start_token_id
        if start is None:
            raise SoraError(
                "the model does not say which token its texts begin with",
                hint="decoder_start_token_id in its config.json (often that of the padding)",
                key="model.path",
            )
        model.config.decoder_start_token_id = start
