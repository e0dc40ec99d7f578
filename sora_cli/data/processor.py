"""Loading of tokenizers and image processors, and padding of batches.

Batches are padded on the right, whichever side a tokenizer prefers, since labels are positions of
tokens. This does not change a decoder's outputs: no token before the padding attends to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sora_cli.core.errors import SoraError

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model")
_IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER = (
    _TOKENIZER_FILES,
    "tokenizer",
    "copy tokenizer.json (or vocab.txt, spm.model, ...) of the model into it",
)
_IMAGES = (
    _IMAGE_FILES,
    "image processor",
    "copy preprocessor_config.json of the model into it",
)
_NEEDS = {
    "AutoTokenizer": (_TOKENIZER,),
    "AutoImageProcessor": (_IMAGES,),
    "AutoProcessor": (_IMAGES, _TOKENIZER),
}


def load_processor(auto: str, source: str, options: Mapping[str, Any]) -> Any:
    """Load a model's tokenizer, image processor or both.

    A local directory without the needed files is an error; transformers would silently make an
    empty tokenizer.

    Args:
        auto: transformers' Auto class: AutoTokenizer, AutoImageProcessor or AutoProcessor.
        source: a directory or Hub id.
        options: of `from_pretrained`, such as `revision` or `gguf_file`.
    """
    # until: transformers > 5.24
    if "gguf_file" not in options:
        for patterns, what, hint in _NEEDS[auto]:
            if _lacks(Path(source), patterns):
                raise SoraError(
                    f"the model directory {source} holds no {what}", hint=hint, key="model.path"
                )
    if auto == "AutoTokenizer":
        from sora_cli.data.gguf_tokenizer import load_tokenizer

        return load_tokenizer(source, **options)
    return _auto_class(auto).from_pretrained(source, **options)


def _auto_class(name: str) -> Any:
    import transformers
    from transformers.models.auto import image_processing_auto

    # transformers 5.4 to 5.17 export it only with torchvision
    # until: transformers 5.18 (huggingface/transformers#48607)
    if name == "AutoImageProcessor":
        return image_processing_auto.AutoImageProcessor
    return getattr(transformers, name)


def lacks_tokenizer(folder: Path) -> bool:
    """Return True if this is a directory without tokenizer files."""
    return _lacks(folder, _TOKENIZER_FILES)


def set_padding(model: Any, tokenizer: Any) -> None:
    """Give tokenizer and model a padding token, which decoders often lack and batches need."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise SoraError(
                "the tokenizer has neither a padding nor an end-of-text token",
                hint="name one in tokenizer_config.json: pad_token",
                key="model.path",
            )
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _lacks(folder: Path, patterns: Sequence[str]) -> bool:
    """Return True if this is a directory without a file that matches any of these patterns."""
    return folder.is_dir() and not any(list(folder.glob(pattern)) for pattern in patterns)


def pad_inputs(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Pad the tokenizer's own columns to (rows, tokens of the longest row) each."""
    # private, but the tokenizer's public pad() warns at each batch that calling it anew is faster
    from transformers.data.data_collator import pad_without_fast_tokenizer_warning

    names = [name for name in tokenizer.model_input_names if name in rows[0]]
    inputs = [{name: row[name] for name in names} for row in rows]
    options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    return dict(pad_without_fast_tokenizer_warning(tokenizer, inputs, **options))


def pad_column(rows: Sequence[Mapping[str, Any]], name: str, value: int) -> Tensor:
    """Pad a column of lists of integers to (rows, tokens of the longest row)."""
    lists = [torch.tensor(row[name]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=value)
