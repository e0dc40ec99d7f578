"""Unpacks a base model in a GGUF file into an ordinary checkpoint, for a merge.

GGUF's numbers are quantised: an update added to them would be lost. transformers converts them to
floating point, as it does for training such a model, and the update is added to the result.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from sora_cli.core.console import size
from sora_cli.core.environment import free_memory
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.hub import quiet_loading
from sora_cli.model.gguf import parsed_once
from sora_cli.model.loading import split_gguf, weights_options

DTYPE = "float32"
"""The dtype of the unpacked weights: a narrower dtype would round dequantised numbers."""


class Unpacked:
    """A temporary directory, removed with this object or at the program's end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sora-gguf-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def unpack(source: str) -> Unpacked:
    """Write configuration, weights and tokenizer of a GGUF file into a temporary directory.

    This takes memory and disk for all numbers in float32; too little of either is an error before
    anything is loaded.
    """
    file = Path(source)
    if not file.is_file():
        raise SoraError(f"there is no file {source}", hint="give the base model with --base")
    _check_room(file)
    unpacked = Unpacked()
    try:
        with quiet_loading():
            _write(source, unpacked.folder)
    except Exception as error:  # a damaged file may raise any exception
        unpacked.remove()
        raise _unreadable(file, error) from error
    return unpacked


def _write(source: str, target: Path) -> None:
    import torch
    import transformers

    name, options = split_gguf(source)
    with parsed_once(source):
        config = transformers.AutoConfig.from_pretrained(name, **options)
        model = _auto_class(config).from_pretrained(
            name, dtype=getattr(torch, DTYPE), **options, **weights_options(options)
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _auto_class(config: Any) -> Any:
    """Return the Auto class with a language-model head; AutoModel if this kind has no such head."""
    import transformers

    for auto, kinds in (
        (transformers.AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
        (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
    ):
        if type(config) in kinds:
            return auto
    return transformers.AutoModel


def _check_room(file: Path) -> None:
    """Refuse a file too large for memory or disk, by the counts in its header."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise SoraError(f"{file.name}: to read GGUF files the package gguf is needed",
                        hint="pip install gguf") from error  # fmt: skip
    try:
        needed = 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    except Exception as error:  # GGUFReader parses without checks: any exception may come
        raise _unreadable(file, error) from error
    free = free_memory()
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    for what, there in (("memory", free), ("disk", disk)):
        if there is not None and needed > there:
            raise SoraError(
                f"{file.name} needs {size(needed)} of {what} as {DTYPE}, {size(there)} are free",
                where=tempfile.gettempdir() if what == "disk" else None,
                hint="set TMPDIR to a larger disk" if what == "disk" else None,
            )


def _unreadable(file: Path, error: Exception) -> SoraError:
    return SoraError(f"the GGUF file {file} cannot be read: {first_line(error)}",
                     hint="is it complete, and does transformers know its kind?")  # fmt: skip
