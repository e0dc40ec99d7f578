"""Files beside an adapter: its tokenizer or processor, and the record of its training inputs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.trained_on import copy_trained_on
from sora_cli.core.atomic import remove_directory, remove_file
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.hub import quiet_loading
from sora_cli.data.processor import load_processor
from sora_cli.model.files import PROCESSOR_FILES

_LONGEST = 64  # tokens
_PROBES = (
    "The cat sees the old dog, and 12 birds.",
    " Größe\tπ ≈ 3.14159; 漢字 🙂\n\nnext line ",
    "a " * (_LONGEST + 6),
)
"""Texts that are encoded alike: words, other scripts and spaces, and one that is cut. It is hardly
longer than that: of two texts the tokenizer makes all pairs of the parts that it cuts off."""


def save_processor(processor: Any, auto: str, folder: Path) -> str | None:
    """Write a tokenizer, an image processor or both into a directory, and check that they load.

    The padding and truncation of the last batch, which a fast tokenizer remembers, are cleared
    first.

    Args:
        auto: transformers' Auto class, as for `load_processor`.

    Returns:
        None if it worked; else the reason, and its files are removed.
    """
    _forget_lengths(processor)
    try:
        with quiet_loading():
            processor.save_pretrained(folder)
            back = load_processor(auto, str(folder), {})
        why = None if gives_the_same(processor, back) else "once loaded it gives other inputs"
    except Exception as error:  # any kind of tokenizer may have its own reason
        why = first_line(error)
    if why is None:
        return None
    for name in PROCESSOR_FILES:
        _remove(folder / name)
    return f"the tokenizer or processor cannot be saved beside the adapter: {why}"


def copy_processor(source: Path, folder: Path) -> None:
    """Copy the tokenizer or processor that may lie beside an adapter."""
    for name in PROCESSOR_FILES:
        place = source / name
        if place.is_file():
            shutil.copyfile(place, folder / name)
        elif place.is_dir():
            shutil.copytree(place, folder / name)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the processor beside an adapter, and the record of its training inputs."""
    copy_processor(source, folder)
    copy_trained_on(source, folder)


def replace_processor(source: Path, folder: Path) -> None:
    """Put the tokenizer or processor beside an adapter in the place of the one in a folder."""
    for name in PROCESSOR_FILES:
        _remove(folder / name)
    copy_processor(source, folder)


def base_files(
    task: str | None, base: BaseReference | None, names: Sequence[str]
) -> dict[str, bytes]:
    """Return the files that saving the base model's own tokenizer or processor gives.

    Args:
        task: the adapter's task family.
        names: of the files that are wanted; those that cannot be made are left out.
    """
    # not for adapters that are only read, whose commands start faster without these
    from sora_cli.adapter.moved import located
    from sora_cli.model.base import load_own_processor
    from sora_cli.recipe.families import families, options_class
    from sora_cli.recipe.recipe import ModelBlock

    if not names or task is None or task not in families() or base is None:
        return {}
    auto = options_class(task).PROCESSOR_CLASS
    try:
        known = located(base)
        block = ModelBlock(path=known.name(), revision=known.revision)
        processor = load_own_processor(block, auto)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            save_processor(processor, auto, folder)
            return {
                name: (folder / name).read_bytes() for name in names if (folder / name).is_file()
            }
    except (SoraError, OSError, ValueError, ImportError):  # a base model that is gone, or changed
        return {}


def auto_of(processor: Any) -> str:
    """Return the Auto class that loads a processor."""
    if hasattr(processor, "image_processor"):
        return "AutoProcessor"
    return "AutoTokenizer" if hasattr(processor, "encode") else "AutoImageProcessor"


def gives_the_same(processor: Any, other: Any) -> bool:
    """Return true if two processors turn the same texts and images into the same inputs."""
    images = [_settings(getattr(p, "image_processor", p)) for p in (processor, other)]
    if images[0] != images[1]:
        return False
    tokenizers = [getattr(p, "tokenizer", p) for p in (processor, other)]
    if not all(hasattr(tokenizer, "encode") for tokenizer in tokenizers):
        return True
    first, second = ([_encoded(t, text) for text in _PROBES] for t in tokenizers)
    templates = {getattr(tokenizer, "chat_template", None) for tokenizer in tokenizers}
    added: list[dict[str, int]] = [
        getattr(tokenizer, "get_added_vocab", dict)() for tokenizer in tokenizers
    ]
    return first == second and len(templates) == 1 and added[0] == added[1]


def _encoded(tokenizer: Any, text: str) -> dict[str, Any]:
    """Return the inputs of a text, truncated alone and as half of a pair."""
    return {
        **tokenizer(text, truncation=True, max_length=_LONGEST),
        "pair": tokenizer(text, text, truncation=True, max_length=16)["input_ids"],
        "specials": sorted(tokenizer.all_special_ids),
    }


def _settings(images: Any) -> Any:
    """Return an image processor's settings; None for a tokenizer."""
    if hasattr(images, "encode"):
        return None
    return {key: str(v) for key, v in images.to_dict().items() if not key.startswith("_")}


def _forget_lengths(processor: Any) -> None:
    """Clear a fast tokenizer's padding and truncation, which it keeps from one call to the next."""
    backend = getattr(getattr(processor, "tokenizer", processor), "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def _remove(place: Path) -> None:
    if place.is_dir():
        remove_directory(place)
    else:
        remove_file(place)
