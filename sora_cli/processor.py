"""What makes a model's inputs: its tokenizer, its image processor, or both in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_cli.errors import SoraError

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
    """Load what makes a model's inputs.

    Args:
        auto: transformers' Auto class: AutoTokenizer, AutoImageProcessor or AutoProcessor.
        source: a directory or Hub id.
        options: of `from_pretrained`, such as `revision` or `gguf_file`.

    Raises:
        SoraError: a local directory holds none; transformers would make up an empty one.
    """
    import transformers

    if "gguf_file" not in options:
        for patterns, what, hint in _NEEDS[auto]:
            if _lacks(Path(source), patterns):
                raise SoraError(
                    f"the model directory {source} holds no {what}", hint=hint, key="model.path"
                )
    return getattr(transformers, auto).from_pretrained(source, **options)


def lacks_tokenizer(folder: Path) -> bool:
    """Whether this is a directory without a tokenizer."""
    return _lacks(folder, _TOKENIZER_FILES)


def set_padding(model: Any, tokenizer: Any) -> None:
    """Decoder models often come without a padding token; batches of several rows need one.

    Raises:
        SoraError: there is no token that could be one.
    """
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
    """Whether this is a directory without any such file."""
    return folder.is_dir() and not any(list(folder.glob(pattern)) for pattern in patterns)
