"""How the tokenizer of a GGUF file splits a text, which transformers leaves out.

A GGUF file names the way of splitting (`tokenizer.ggml.pre`); its table is in llama.cpp's
`llama-vocab.cpp`. transformers reads the vocabulary and the merges, and splits as GPT-2 does. With
"smollm" each digit stands alone before that: otherwise a digit behind blank lines or several spaces
takes the last of them to itself, and other tokens are trained on than llama.cpp reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from sora_cli.gguf.header import gguf_fields

_PRE = "tokenizer.ggml.pre"
_DIGITS_ALONE = {"smollm"}


def load_tokenizer(source: str, **options: Any) -> Any:
    """Load a tokenizer as transformers does; one of a GGUF file splits texts as llama.cpp's.

    Args:
        source: a directory or Hub id.
        options: of `from_pretrained`; `gguf_file` names a GGUF file.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if "gguf_file" not in options:
        return tokenizer
    # until: transformers > 5.24
    file = cached_file(source, options["gguf_file"], revision=options.get("revision"))
    if file is not None and gguf_fields(Path(file)).get(_PRE) in _DIGITS_ALONE:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ])  # fmt: skip
    return tokenizer
