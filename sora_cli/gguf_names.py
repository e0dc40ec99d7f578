"""What llama.cpp calls the layers of a model: the tables of its package `gguf`, asked for adapters.

Its converter (convert_lora_to_gguf.py) looks every pair of factors up there, under the name of the
layer's weight in the base model, and stops at one that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_OTHER_NAMES = {
    "mistral": "llama",
    "mixtral": "llama",
    "phi": "phi2",
    "cohere": "command-r",
    "gemma3text": "gemma3",
    "gemma4text": "gemma4",
    "umt5": "t5",
    "roberta": "bert",
    "xlmroberta": "bert",
    "gptbigcode": "starcoder",
}
"""transformers' model type -> llama.cpp's architecture, where they are not the same but for dashes.
"""


def gguf_names(model_type: str, paths: Iterable[str]) -> dict[str, str | None] | None:
    """Module path -> name of its weight in a GGUF file, without an ending; None: it has no place.

    Args:
        model_type: of the base model's configuration.

    Returns:
        None where nothing can be told: the package `gguf` is not installed.

    Raises:
        LookupError: llama.cpp knows no such kind of model.
    """
    try:
        import gguf
    except ImportError:
        return None
    paths = tuple(paths)
    plain = _plain(model_type)
    wanted = _plain(_OTHER_NAMES.get(plain, plain))
    known = {_plain(name): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if wanted not in known:
        raise LookupError(model_type)
    numbers = (int(part) for path in paths for part in path.split(".") if part.isdecimal())
    names = gguf.get_tensor_name_map(known[wanted], max(numbers, default=0) + 1)
    return {path: names.get_name(path) or names.get_name(_inner(path)) for path in paths}


def _inner(path: str) -> str:
    """Without the backbone's own name, which converters of encoders take away."""
    return path.partition(".")[2]


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name.lower())
