"""The base model's directory: its configuration, weight files, and other files to copy.

A base model in a GGUF file is first unpacked into an ordinary checkpoint. GGUF's numbers are
quantised: an update added to them would be lost. transformers converts them to floating point, as
it does for training such a model, and the update is added to the result.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from sora_cli.adapter.metadata import read_json
from sora_cli.core.console import size
from sora_cli.core.environment import free_memory
from sora_cli.core.errors import SoraError
from sora_cli.core.hub import quiet_hub, quiet_loading
from sora_cli.core.shell import quote
from sora_cli.gguf.package import check_package, parsed_once, reading
from sora_cli.model.files import (
    ADAPTER_CONFIG,
    MERGE_RECORD,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    PROCESSOR_FILES,
    SAFE_WEIGHTS,
    SORA_FILE,
    TRAINED_ON,
    WEIGHTS_INDEX,
    holds_pickles_only,
    pickled,
)
from sora_cli.model.fingerprint import weight_files
from sora_cli.model.loading import LOCAL_COPY, loading, split_gguf, weights_options

MODEL_CARD = "README.md"

_OWN = (MODEL_CONFIG, MODEL_CARD, MERGE_RECORD, SORA_FILE, TRAINED_ON, WEIGHTS_INDEX)
"""Files besides the weights that a merge writes itself."""
_WEIGHTS = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.pb", "*.msgpack", "*.ot"),
    *("*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel", "*.mlpackage", "*.gguf", "*.ggml"),
)
"""Weights in formats other than safetensors; they are not downloaded."""
_NEEDED = (
    *PROCESSOR_FILES,
    *("generation_config.json", "audio_tokenizer_config.json", "custom_generate"),
    *("tokenizer.*.json", "*.tiktoken", "tekken.json"),  # versioned tokenizers, and Mistral's
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("licen[cs]e*", "notice*", "copying*", "use_policy*"),
)
"""Patterns, in lower case, of files and directories to copy: those that transformers or
sentence-transformers load with a model, and its licence."""
_CODE = "*.py"
_CONFIGS = (MODEL_CONFIG, "tokenizer_config.json", "processor_config.json",
            "preprocessor_config.json")  # fmt: skip
"""Configuration files that may name the model's own Python code, under `auto_map`."""


class _Unpacked:
    """A temporary directory, removed with this object or at the program's end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sora-gguf-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


@dataclass(frozen=True)
class BaseFolder:
    """A base model's checkpoint directory.

    Attributes:
        source: the model's reference, resolved.
        origin: the directory or file whose fingerprint identifies the base.
        raw: the parsed `config.json`.
        weights: the safetensors files, in their order.
        index: the parsed index of the shards; None for a single file.
        others: files to copy unchanged: tokenizer, generation config, chat template.
        left_out: files and directories that are not copied: weights in other formats, and files
            that no model needs.
        unpacked: keeps the temporary directory of an unpacked GGUF file alive; None for others.
    """

    source: str
    origin: Path
    folder: Path
    raw: dict[str, Any]
    weights: tuple[Path, ...]
    index: dict[str, Any] | None
    others: tuple[Path, ...]
    left_out: tuple[str, ...]
    unpacked: _Unpacked | None = None

    @property
    def others_bytes(self) -> int:
        """Total size of the files to copy, in bytes."""
        return sum((self.folder / name).stat().st_size for name in self.others)

    @property
    def merged_names(self) -> tuple[str, ...]:
        """Patterns of all names that a merge writes into its output directory."""
        others = {name.parts[0] for name in self.others}
        return (*_OWN, SAFE_WEIGHTS, *sorted(others))


def open_base(source: str, revision: str | None) -> BaseFolder:
    """Find the files of a resolved model reference.

    Quantised models, and models that load an adapter of their own, are refused.
    """
    unpacked = _unpack(source) if source.lower().endswith(".gguf") else None
    folder = _folder(source, revision) if unpacked is None else unpacked.folder
    if (folder / ADAPTER_CONFIG).is_file():
        raise SoraError(
            f"{source} holds an adapter of its own, which transformers would load with the model",
            hint=f"merge that adapter first, or remove {ADAPTER_CONFIG} from the directory",
        )
    raw = read_json(folder / MODEL_CONFIG)
    if not isinstance(raw, dict):
        raise SoraError(f"{folder / MODEL_CONFIG} is not a configuration: no JSON object")
    if raw.get("quantization_config") is not None or raw.get("compression_config") is not None:
        raise SoraError(
            f"{source} is quantised: adding to its weights would lose the adapter",
            hint="merge into the unquantised model with --base",
        )
    # from_pretrained() then loads the file named there instead of model.safetensors
    if raw.get("transformers_weights"):
        raise SoraError(
            f"the {MODEL_CONFIG} of {source} names other weights than {MODEL_WEIGHTS}",
            where=f"transformers_weights: {str(raw['transformers_weights'])[:100]}",
            hint="load it with from_pretrained(), and write it anew with save_pretrained()",
        )
    weights = _weights(folder, source)
    others, left_out = _others(folder, weights)
    origin = folder if unpacked is None else Path(source)
    index = _index(folder, weights)
    return BaseFolder(source, origin, folder, raw, weights, index, others, left_out, unpacked)


def decoded(raw: dict[str, Any]) -> dict[str, Any]:
    """Copy a stored configuration, with {"__float__": "Infinity"} turned into a number.

    transformers' `from_pretrained` decodes such numbers, but its `from_dict` does not.
    """
    # until: transformers > 5.24
    tag = "__float__"
    text = json.dumps(raw)
    copied: dict[str, Any] = json.loads(
        text, object_hook=lambda value: float(value[tag]) if value.keys() == {tag} else value
    )
    return copied


def _folder(source: str, revision: str | None) -> Path:
    path = Path(source)
    if path.is_file():
        raise SoraError(f"{source} is a file, not a model directory",
                        hint=f"give its directory: --base {quote(str(path.parent))}")  # fmt: skip
    if path.exists():
        return path
    from huggingface_hub import snapshot_download

    quiet_hub()
    with loading(source, local_copy=LOCAL_COPY):
        snapshot = snapshot_download(source, revision=revision, ignore_patterns=list(_WEIGHTS))
        return Path(snapshot)


def _weights(folder: Path, source: str) -> tuple[Path, ...]:
    if (folder / MODEL_WEIGHTS).is_file() or (folder / WEIGHTS_INDEX).is_file():
        return tuple(weight_files(folder))
    if holds_pickles_only(folder):
        raise pickled(source, then="--base THAT --force")
    raise SoraError(
        f"{source} holds neither {MODEL_WEIGHTS} nor {WEIGHTS_INDEX}",
        hint="name a directory that from_pretrained() loads: --base DIR",
    )


def _index(folder: Path, weights: tuple[Path, ...]) -> dict[str, Any] | None:
    if weights[0].name == MODEL_WEIGHTS:
        return None
    index: dict[str, Any] = read_json(folder / WEIGHTS_INDEX)
    return index


def _others(folder: Path, weights: tuple[Path, ...]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return the files to copy, and the names left out, relative to the directory."""
    written = {*_OWN, *(file.name for file in weights)}
    needed = [*_NEEDED, *_modules(folder), *([_CODE] if _names_code(folder) else [])]
    others: list[Path] = []
    left_out: list[str] = []
    for entry in sorted(folder.iterdir()):
        if entry.name in written or entry.name.startswith("."):
            continue
        if not any(fnmatchcase(entry.name.lower(), pattern) for pattern in needed):
            left_out.append(f"{entry.name}/" if entry.is_dir() else entry.name)
        elif entry.is_dir():
            inside = (file for file in sorted(entry.rglob("*")) if file.is_file())
            others += [file.relative_to(folder) for file in inside]
        else:
            others.append(Path(entry.name))
    return tuple(others), tuple(left_out)


def _modules(folder: Path) -> list[str]:
    """Return the directories listed in sentence-transformers' modules.json."""
    listed = _parsed(folder / "modules.json")
    entries = listed if isinstance(listed, list) else []
    paths = (str(entry.get("path") or "") for entry in entries if isinstance(entry, dict))
    return [escape(path.partition("/")[0].lower()) for path in paths]


def _names_code(folder: Path) -> bool:
    """Return True if a configuration names Python code of the model's own (`auto_map`)."""
    configs = (_parsed(folder / name) for name in _CONFIGS)
    return any(isinstance(config, dict) and "auto_map" in config for config in configs)


def _parsed(file: Path) -> Any:
    try:
        return read_json(file)
    except SoraError:
        return None


def _unpack(source: str) -> _Unpacked:
    """Write configuration, weights and tokenizer of a GGUF file into a temporary directory.

    This takes memory and disk for all numbers in float32; too little of either is an error before
    anything is loaded.
    """
    file = Path(source)
    if not file.is_file():
        raise SoraError(f"there is no file {source}", hint="give the base model with --base")
    check_package(f"{file.name}: to read GGUF files the package gguf is needed")
    hint = "is it complete, and does transformers know its kind?"
    with reading(file, hint), parsed_once(source):
        _check_room(file)
        unpacked = _Unpacked()
        try:
            with quiet_loading():
                _write_unpacked(source, unpacked.folder)
        except Exception:
            unpacked.remove()
            raise
    return unpacked


def _write_unpacked(source: str, target: Path) -> None:
    import torch
    import transformers

    from sora_cli.data.gguf_tokenizer import load_tokenizer

    name, options = split_gguf(source)
    config = transformers.AutoConfig.from_pretrained(name, **options)
    # a narrower dtype would round dequantised numbers
    model = _auto_class(config).from_pretrained(
        name, dtype=torch.float32, **options, **weights_options(options)
    )
    tokenizer = load_tokenizer(name, **options)
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
    """Refuse a GGUF file too large for memory or disk, by the counts in its header."""
    from gguf import GGUFReader

    needed = 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    free = free_memory()
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    for what, there in (("memory", free), ("disk", disk)):
        if there is not None and needed > there:
            raise SoraError(
                f"{file.name} needs {size(needed)} of {what} as float32, {size(there)} are free",
                where=tempfile.gettempdir() if what == "disk" else None,
                hint="set TMPDIR to a larger disk" if what == "disk" else None,
            )
