"""Kohya's sd-scripts, which ComfyUI and others read and write.

One tensor name has the prefix of its model, the module's path with "_" for ".", and an ending:
`lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight`, `.lora_up.weight` and `.alpha`.
dW = (alpha / r) up down, and alpha is r where there is none (networks/lora.py: `LoRAModule`,
`create_network_from_weights`). LyCORIS writes its other kinds into the same layout.
"""

from __future__ import annotations

import re

from sora_cli.adapter.foreign.contents import Contents, Source, halves, scaled_pairs

NAME = "Kohya"

_KEY = re.compile(r"(lora_unet|lora_te[123]?|lycoris)_([^.]+)\.(.+)")
_ENDINGS = {"lora_down.weight": "a", "lora_up.weight": "b", "alpha": "alpha"}
_MORE = {
    "it is a LoHa, whose updates are elementwise products of low-rank matrices": ".hada_",
    "it is a LoKr, whose updates are Kronecker products": ".lokr_",
    "it is a DoRA, which also rescales every column of the base weight": ".dora_scale",
    "it is a convolution in Tucker's form, a product of three": ".lora_mid",
    "it is an OFT, which rotates the weights": ".oft_",
    "it is a difference stored in full": ".diff",
}


def read(source: Source) -> Contents | None:
    """Read a file of Kohya's layout; return None for another format."""
    if not any(_KEY.fullmatch(key) for key in source.keys):
        return None
    pairs = scaled_pairs(source, halves(source, _split, _MORE))
    return Contents(NAME, tuple(pairs), flattened=True)


def _split(key: str) -> tuple[str, str] | None:
    match = _KEY.fullmatch(key)
    if match is None or match[3] not in _ENDINGS:
        return None
    return f"{match[1]}|{match[2]}", _ENDINGS[match[3]]
