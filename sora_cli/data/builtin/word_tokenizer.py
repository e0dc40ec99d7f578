"""A tokenizer of whole words and single digits for the built-in models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PAD, UNKNOWN, END = "<pad>", "<unk>", "</s>"
_CHAT = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}"
    f"{END}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Chat template; each role has a token of its own."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for the space before a word


def word_tokenizer(
    words: Sequence[str],
    *,
    longest: int,
    start: str | None = None,
    marks: str = "",
    roles: Sequence[str] = (),
) -> Any:
    """Make a fast tokenizer that knows these words and the digits, in lower case.

    It splits numbers into digits and ends each text with `END`. Decoding restores the text.

    Args:
        words: the vocabulary; every other word becomes `UNKNOWN`.
        longest: the model's maximum number of tokens.
        start: token at the beginning of each text; None for no such token.
        marks: punctuation that it knows.
        roles: tokens before the messages of a chat, for a model that goes on with a text: then
            `END` is put behind messages only, by a chat template.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    special = [PAD, *([start] if start else []), UNKNOWN, END, *roles]
    known = [*special, _SPACE, *"0123456789", *marks, *(f"{_SPACE}{word}" for word in words)]
    numbers = {token: number for number, token in enumerate(known)}
    core = Tokenizer(WordLevel(numbers, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    split = [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.Punctuation()] if marks else split
    )
    core.decoder = decoders.Metaspace()
    if not roles:
        core.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {END}" if start else f"$A {END}",
            special_tokens=[(token, numbers[token]) for token in special],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        bos_token=start,
        model_max_length=longest,
        **({"additional_special_tokens": list(roles), "chat_template": _CHAT} if roles else {}),
    )
