"""Names of model and adapter files, and checks of a model's directory before loading."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote

MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
"""Maps tensors to files if a model's weights are in several files."""
SAFE_WEIGHTS = "*.safetensors"
TORCH_PICKLES = "pytorch_model*.bin"
PICKLES = (TORCH_PICKLES, "*.pt", "*.pth")

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's configuration; a directory with this file is an adapter."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
SORA_FILE = "sora.json"
"""Facts about an adapter without a key in PEFT's configuration; facts about a merged model."""
MERGE_RECORD = "sora_merge.json"
"""Share of an adapter's update that a merged model's weights hold, by module."""
CARD = "README.md"
"""The model card."""
CERTIFICATE = "certificate.json"
"""The promise about an adapter; it names places of this machine, so it is not uploaded."""
ASKED = "asked.json"
"""Labels that people gave for a promise; no command copies it."""
TRAINED_ON = "trained_on.json"
"""Hashes of the inputs that a result was trained on; they stay on this machine."""
TEMPLATES = "additional_chat_templates"
"""A folder with a tokenizer's further chat templates."""
PROCESSOR_FILES = (
    TEMPLATES, "added_tokens.json", "bpe.codes", "byte_maps.json",
    "chat_template.jinja", "chat_template.json", "dict.txt", "emoji.json", "entity_vocab.json",
    "merges.txt", "normalizer.json", "preprocessor_config.json", "processor_config.json",
    "prophetnet.tokenizer", "sentencepiece.bpe.model", "sentencepiece.model", "source.spm",
    "special_tokens_map.json", "spiece.model", "spm.model", "spm_char.model", "target.spm",
    "target_vocab.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "video_preprocessor_config.json", "vocab-src.json", "vocab-tgt.json", "vocab.json", "vocab.txt",
    "word_pronunciation.json", "word_shape.json",
)  # fmt: skip
"""All files of transformers' tokenizers and processors: `vocab_files_names` of the classes."""
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, SORA_FILE, CARD, *PROCESSOR_FILES)
"""All files of an adapter that this program writes."""
DELTA_FILE = "delta.safetensors"
"""The tensors that a baseline changed in its base model."""


# the YAML head of a model card that names PEFT as its library, as PEFT and sora write it
_CARD_STARTS = re.compile(r"---\n(?:(?!---\n).*\n)*?library_name: peft\n")


def adapter_files(directory: Path) -> tuple[str, ...]:
    """Return the file names that an adapter's directory may contain when it is to be replaced.

    README.md is allowed only if it is a model card by PEFT or this program, not a user's own text.
    """
    mine = (*ADAPTER_FILES, CERTIFICATE, ASKED, TRAINED_ON)
    try:
        text = (directory / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return mine
    return mine if _CARD_STARTS.match(text) else tuple(name for name in mine if name != CARD)


def is_there(path: str | Path) -> bool:
    """Return True if a path exists; False also if it is too long for the system."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def check_source(reference: str, resolved: str) -> None:
    """Check a resolved model reference: a .gguf file, or a directory with a model.

    A directory with weights only as pickles is refused. The files behind a Hub id are not checked.
    """
    path = Path(resolved)
    if path.is_file() and path.suffix.lower() != ".gguf":
        raise SoraError(
            f"model '{reference}' is a file, but not a .gguf file",
            hint="name the model's directory, not one of its files",
            key="model.path",
        )
    if path.is_dir():
        _check_directory(reference, path)


def _check_directory(reference: str, folder: Path) -> None:
    if (folder / ADAPTER_CONFIG).is_file():
        raise SoraError(
            f"model '{reference}' holds an adapter of its own, which would be loaded with it",
            hint=f"merge it first: sora merge {quote(reference)} -o DIR; then model.path=DIR",
            key="model.path",
        )
    if not (folder / MODEL_CONFIG).is_file():
        raise SoraError(
            f"model '{reference}' holds no {MODEL_CONFIG}",
            hint="a model is a directory that save_pretrained() wrote, or a Hub id",
            key="model.path",
        )
    if holds_pickles_only(folder):
        raise pickled(reference)
    for file in (folder / MODEL_CONFIG, *sorted(folder.glob(SAFE_WEIGHTS))):
        if file.is_file() and not os.access(file, os.R_OK):  # libraries call it missing
            raise SoraError(f"{file} cannot be read: permission denied", key="model.path")


def holds_pickles_only(folder: Path) -> bool:
    """Return True if a directory holds weights only as pickles."""
    pickles = any(next(folder.glob(pattern), None) for pattern in PICKLES)
    return pickles and next(folder.glob(SAFE_WEIGHTS), None) is None


def pickled(reference: str, *, then: str = "name that directory") -> SoraError:
    """Return the error for weights stored only as pickles.

    Args:
        then: next step with a directory of safetensors made from them.
    """
    return SoraError(
        f"model '{reference}' stores its weights as pickles, which can run any code when loaded",
        hint=f"if you trust it, convert it by from_pretrained() and save_pretrained(): {then}",
        key="model.path",
    )


def foreign_code(reference: str) -> SoraError:
    """Return the error for a model that needs to run its own Python files."""
    return SoraError(
        f"model '{reference}' needs its own Python code, which is not run by default",
        hint="if you have read it and trust it: model.trust_remote_code=true",
        key="model.path",
    )


def check_complete(reference: str, missing: Collection[str], tensors: int) -> None:
    """Refuse a model if most of its tensors are in no file, as they would be random.

    A new head and a pooler are few tensors; other missing modules are trained in full.
    """
    if 2 * len(missing) > tensors:
        raise SoraError(
            f"model '{reference}' lacks {len(missing)} of the {tensors} tensors that its "
            f"configuration asks for, such as '{min(missing)}'",
            hint="check that config.json and the weights belong to the same model",
            key="model.path",
        )


def check_quantised(reference: str, config: Any) -> None:
    """Refuse a model with weights that are stored quantised."""
    if getattr(config, "quantization_config", None) is not None:
        raise SoraError(
            f"model '{reference}' is quantised: adapters need plain weights, or weights "
            "that are quantised while they load",
            hint="name the model it was made from, as model.path; to save memory, add "
            "model.quantise=4bit",
            key="model.path",
        )
