"""The subjects of a verification, found from files: an adapter on its base model, or a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.apply import prepare
from sora_cli.adapter.base_check import check_weights
from sora_cli.adapter.classes import BARE, number_of_labels
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.places import adapter_folder, model_source
from sora_cli.adapter.reading import open_adapter, read_adapter
from sora_cli.core.errors import SoraError
from sora_cli.core.hub import quiet_hub, quiet_loading
from sora_cli.core.words import first_few
from sora_cli.data.gguf_tokenizer import load_tokenizer as read_tokenizer
from sora_cli.data.processor import lacks_tokenizer
from sora_cli.model.files import ADAPTER_WEIGHTS
from sora_cli.model.fingerprint import StoredTensor, read_header, stored_tensors
from sora_cli.model.loading import LOCAL_COPY, loading, split_gguf, weights_options
from sora_cli.model.references import local_checkpoint, resolve_model_path

_GROWTH = {".bin": 2, ".gguf": 8}
"""Bytes in memory (float32) per byte of a file, for files without a readable header: 16 and 4 bits
a weight are assumed."""


@dataclass(frozen=True)
class Subject:
    """One side of a comparison.

    Attributes:
        reference: the user's name for it.
        source: the model to load, resolved; of an adapter, its base model.
        folder: the adapter's own directory.
    """

    reference: str
    source: str
    revision: str | None = None
    adapter: Adapter | None = None
    folder: Path | None = None


def find_subjects(
    references: tuple[str, ...], *, base: str | None, force: bool = False
) -> tuple[Subject, ...]:
    """Tell adapters from models, and put all adapters on one base.

    The base is `base`, or else the base of the first adapter that records one.

    Args:
        force: the base may hold other weights than an adapter was trained on.
    """
    folders = [adapter_folder(Path(ref).expanduser()) for ref in references]
    bases = [_base(folder) for folder in folders if folder is not None]
    source, revision = "", None
    if bases:
        recorded = next((known for known in bases if known.path or known.resolved), bases[0])
        source = resolve_model_path(base or recorded.name())
        revision = recorded.revision if base is None else None
    elif base is not None:
        raise SoraError("--base is for adapters, and there is none: both are models")
    read = {f: read_adapter(f, base=base) for f in folders if f is not None}
    adapters = [None if folder is None else read[folder] for folder in folders]
    subjects = tuple(
        Subject(reference, source, revision, adapter, folder)
        if adapter
        else Subject(reference, model_source(reference))
        for reference, folder, adapter in zip(references, folders, adapters, strict=True)
    )
    check_bases(subjects, force=force)
    return subjects


def _base(folder: Path) -> BaseReference:
    """Return an adapter's base from its header, without reading a tensor."""
    with open_adapter(folder) as file:
        return file.base


def load_config(subject: Subject) -> Any:
    """Load the model's configuration, with the adapter's number of labels.

    A quantised model is refused: its outputs cannot show the effect of an adapter.
    """
    import transformers

    quiet_hub()
    name, options = _options(subject)
    with _loading(subject):
        config = transformers.AutoConfig.from_pretrained(name, **options)
    if getattr(config, "quantization_config", None) is not None:
        raise SoraError(
            f"{subject.source} is quantised: its outputs cannot show the effect of an adapter",
            hint="compare on the unquantised model" + (": --base DIR" if subject.adapter else ""),
        )
    labels = number_of_labels(subject.adapter) if subject.adapter else None
    if labels is not None:
        config.num_labels = labels
    return config


def load_subject(subject: Subject, config: Any, auto: str, dtype: torch.dtype) -> Any:
    """Load the model in evaluation mode on the CPU, with an adapter's head but not its layers.

    A parameter that no file holds is an error.
    """
    import transformers

    name, options = _options(subject)
    gguf = {"gguf_file": options["gguf_file"]} if "gguf_file" in options else {}
    with _loading(subject):
        model, info = getattr(transformers, auto).from_pretrained(
            name,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with names
            **options,
            **weights_options(gguf),
        )
    _check_complete(subject, info, auto)
    if subject.adapter is not None:
        prepare(model, subject.adapter)  # also so that outputs without it are as wide
    return model.eval()


def load_tokenizer(subject: Subject) -> Any | None:
    """Load the tokenizer beside the model; None if there is none."""
    name, options = _options(subject)
    if "gguf_file" not in options and lacks_tokenizer(Path(name)):
        return None
    try:
        with quiet_loading():
            return read_tokenizer(name, **options)
    except (OSError, ValueError, ImportError, KeyError):
        return None


def float32_bytes(subject: Subject) -> int | None:
    """Return the bytes of model and adapter in float32, from headers; None if unknown."""
    checkpoint = local_checkpoint(subject.source, subject.revision)
    if checkpoint is None:
        return None
    stored = stored_tensors(checkpoint)
    # by numbers, not by file size: a bfloat16 checkpoint takes twice its size in float32
    total = 4 * sum(_numbers(tensor) for tensor in stored)
    if not stored:
        files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.iterdir())
        total = sum(f.stat().st_size * _GROWTH.get(f.suffix.lower(), 0) for f in files)
    if not total:
        if Path(subject.source).exists():
            raise SoraError(f"{subject.source} holds no weights")
        return None  # a Hub id of which little is in the cache
    adapter = subject.adapter
    return total + (4 * (adapter.parameters + adapter.head_parameters) if adapter else 0)


def stored_dtypes(subject: Subject) -> set[str]:
    """Return the number formats of the subject's own tensors, as in safetensors ("BF16").

    For an adapter these are its factors' formats: the base model is the same on both sides.
    """
    if subject.folder is not None:
        tensors = list(read_header(subject.folder / ADAPTER_WEIGHTS))
        return {t.dtype for t in tensors if ".lora_" in t.name}
    checkpoint = local_checkpoint(subject.source, subject.revision)
    return set() if checkpoint is None else {t.dtype for t in stored_tensors(checkpoint)}


def check_bases(subjects: Iterable[Subject], *, force: bool) -> tuple[str, ...]:
    """Refuse a base whose weights are known to differ from the adapter's base model.

    Args:
        force: return a remark instead, for each adapter.

    Returns:
        A remark for each adapter that is not known to be trained on its base.
    """
    remarks: list[str | None] = []
    for subject in subjects:
        if subject.adapter is not None:
            base, files = subject.adapter.base, local_checkpoint(subject.source, subject.revision)
            remark = check_weights(base, files, subject.source, subject.reference, force=force)
            remarks.append(remark)
    return tuple(dict.fromkeys(filter(None, remarks)))


def _options(subject: Subject) -> tuple[str, dict[str, str]]:
    """Return the arguments of `from_pretrained`; a directory has no revisions."""
    name, options = split_gguf(subject.source)
    if subject.revision is not None and not Path(name).exists():
        options["revision"] = subject.revision
    return name, options


def _loading(subject: Subject) -> AbstractContextManager[None]:
    hint = LOCAL_COPY if subject.adapter else "give a local copy of it"
    return loading(subject.source, local_copy=hint)


def _check_complete(subject: Subject, info: Mapping[str, Any], auto: str) -> None:
    """Refuse parameters that no file supplies: they are random, and different at each load."""
    head = subject.adapter.head if subject.adapter else {}
    absent = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    random = sorted(key for key in absent if key not in head)
    if auto == BARE:  # a pooler does not enter the last hidden state
        random = [key for key in random if not key.startswith("pooler.")]
    if not random:
        return
    missing = first_few((f"'{key}'" for key in random), 1)
    if subject.adapter is None:
        raise SoraError(
            f"{subject.reference} holds no weight of the right shape for {missing}",
            where=f"it was loaded with {auto}",
            hint="is it a base model without a trained head, or a model for another task?",
        )
    raise SoraError(
        f"neither {subject.reference} nor its base holds a weight of the right shape for {missing}",
        where=f"the base is {subject.source}, loaded with {auto}",
        hint="is it the right base model? --base MODEL; a head that was not stored is lost",
    )


def _numbers(tensor: StoredTensor) -> int:
    return int(torch.Size(tensor.shape).numel())
