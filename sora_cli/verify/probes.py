"""Fixed inputs for any model: sentences if there is a tokenizer, else random ids, pixels or sounds.

The same model configuration and tokenizer give the same inputs, on every machine.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sora_cli.adapter.classes import BARE
from sora_cli.core.errors import SoraError

SENTENCES = (
    "No.",
    "The cat sat on the mat.",
    "Every bird that sings in the morning is heard by someone.",
    "In 1984 the company sold 12,500 machines, 40% more than in the year before.",
    "She said that she would come if it did not rain, but it rained, and so nobody ever saw her.",
    "This film is not half as bad as people say; the plot is thin, the actors are wonderful, and "
    "the last ten minutes alone are worth the price of the ticket, whatever the critics write.",
)
_CHOICE = "AutoModelForMultipleChoice"
_PAIRED = ("AutoModelForSequenceClassification", "AutoModelForQuestionAnswering", _CHOICE)
_OWN_DECODER_INPUTS = ("AutoModelForSequenceClassification", "AutoModelForQuestionAnswering",
                       "AutoModelForTokenClassification")  # fmt: skip
ROWS, _IMAGES = 6, 4
_CHOICES = 2  # a divisor of the rows
_LENGTH, _DECODER_LENGTH = 48, 8  # tokens at most


@dataclass(frozen=True)
class Probe:
    """The inputs of a forward pass.

    Attributes:
        inputs: argument name -> (rows, ...).
        mask: (rows, positions), true for outputs that count; None: all count.
        padding: the id that fills up short rows.
        what: a description for people.
    """

    inputs: dict[str, Tensor]
    mask: Tensor | None
    padding: int
    what: str


def make_probe(configs: Sequence[Any], auto: str, tokenizer: Any | None) -> Probe:
    """Make inputs that models of all these configurations accept.

    Only text, images and Whisper's spectrograms can be made.

    Args:
        auto: the models' Auto class.
        tokenizer: if None, or if it does not know the sentences' words, random ids are used.
    """
    config = configs[0]
    sizes = [vocabulary_of(c) for c in configs]
    if None in sizes:
        return _pixels(config)
    if getattr(config, "num_mel_bins", None) is not None:
        return _sounds(config, min(size for size in sizes if size is not None))
    # the smaller of two: an embedding may have been resized on one side
    vocabulary = min(size for size in sizes if size is not None)
    probe = None if tokenizer is None else _sentences(config, auto, tokenizer, vocabulary)
    probe = probe or _random_ids(config, vocabulary)
    if auto == _CHOICE:
        return _choices(probe)
    if auto == BARE and _has_two_towers(config):
        pictures = _pixels(config.vision_config)
        what = f"{probe.what}, with {pictures.what}"
        return Probe({**probe.inputs, **pictures.inputs}, None, probe.padding, what)
    if not config.is_encoder_decoder or auto in _OWN_DECODER_INPUTS:
        return probe
    decoder_ids = _decoder_ids(config, vocabulary, len(probe.inputs["input_ids"]))
    return Probe(
        {**probe.inputs, "decoder_input_ids": decoder_ids}, None, probe.padding, probe.what
    )


def _sentences(config: Any, auto: str, tokenizer: Any, vocabulary: int) -> Probe | None:
    """Return a padded batch; None if the tokenizer cannot pad, or does not fit the model."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            return None
        tokenizer.pad_token = tokenizer.eos_token
    second = (SENTENCES[::-1],) if auto in _PAIRED else ()
    batch: Mapping[str, Tensor] = tokenizer(
        *[list(texts) for texts in (SENTENCES, *second)],
        padding=True,
        truncation=True,
        max_length=longest(config),
        return_attention_mask=True,
        return_tensors="pt",
    )
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    unknown = (ids == tokenizer.unk_token_id)[mask] if tokenizer.unk_token_id is not None else None
    if not mask.any() or int(ids.max()) >= vocabulary:
        return None
    # a row of [UNK] alone would hide any difference of the embeddings
    if unknown is not None and float(unknown.float().mean()) > 0.5:
        return None
    inputs = {name: tensor for name, tensor in batch.items() if _takes(config, name)}
    what = f"{len(ids)} {'pairs of sentences' if second else 'sentences'}, {int(mask.sum())} tokens"
    return Probe(inputs, mask, int(tokenizer.pad_token_id), what)


def with_tokens(probe: Probe, tokens: Sequence[int]) -> Probe:
    """Put tokens into the rows of a probe of texts, so that their embeddings are compared, too.

    They take the first places of the rows; those that do not fit are left out.
    """
    if not tokens or "input_ids" not in probe.inputs:
        return probe
    ids = probe.inputs["input_ids"].clone()
    flat = ids.view(-1, ids.shape[-1])
    for number, token in enumerate(tokens[: len(flat) * 2]):  # a row has two tokens at least
        flat[number % len(flat), number // len(flat)] = token
    return replace(probe, inputs={**probe.inputs, "input_ids": ids})


def _choices(probe: Probe) -> Probe:
    """Take every two rows as the choices of one question: (questions, choices, positions)."""
    inputs = {name: t.reshape(-1, _CHOICES, t.shape[-1]) for name, t in probe.inputs.items()}
    return Probe(inputs, None, probe.padding, f"{probe.what}, {_CHOICES} choices a question")


def _has_two_towers(config: Any) -> bool:
    """Return true if the model compares texts with pictures, such as CLIP."""
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING or getattr(config, "vision_config", None) is None:
        return False
    takes = inspect.signature(MODEL_MAPPING[type(config)].forward).parameters
    return {"input_ids", "pixel_values", "return_loss"} <= takes.keys()  # a contrastive loss


def _takes(config: Any, name: str) -> bool:
    """Return true if the model takes this input; segment ids need several kinds of segment."""
    return name != "token_type_ids" or (getattr(config, "type_vocab_size", None) or 0) > 1


def _random_ids(config: Any, vocabulary: int) -> Probe:
    special = _special_ids(config)
    padding = getattr(config.get_text_config(), "pad_token_id", None)
    padding = padding if isinstance(padding, int) and 0 <= padding < vocabulary else 0
    ids = _draw(vocabulary, special | {padding}, (ROWS, min(12, longest(config))), seed=0)
    eos = getattr(config.get_text_config(), "eos_token_id", None)
    reads_the_end = config.is_encoder_decoder or _has_two_towers(config)
    if reads_the_end and isinstance(eos, int) and 0 <= eos < vocabulary:
        ids[:, -1] = eos  # BART's classifier, and CLIP, take a text's vector there
    mask = torch.ones_like(ids)
    what = f"{ROWS} rows of random token ids, {ids.numel()} tokens"
    return Probe({"input_ids": ids, "attention_mask": mask}, mask.bool(), padding, what)


def _decoder_ids(config: Any, vocabulary: int, rows: int) -> Tensor:
    """Return (rows, positions): the token that decoders start with, then random ids."""
    ids = _draw(vocabulary, _special_ids(config), (rows, _DECODER_LENGTH), seed=1)
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    known = (getattr(config, name, None) for name in names)
    ids[:, 0] = next((i for i in known if isinstance(i, int)), 0)
    return ids


def _pixels(config: Any) -> Probe:
    """Return pixels (images, channels, height, width), standard normal."""
    side, channels = (getattr(config, name, None) for name in ("image_size", "num_channels"))
    if side is None or channels is None:
        raise SoraError(
            f"no inputs can be made for a '{config.model_type}' model: only for text and images"
        )
    height, width = (side, side) if isinstance(side, int) else side
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(_IMAGES, channels, height, width, generator=g)
    return Probe({"pixel_values": pixels}, None, 0, f"{_IMAGES} images of noise")


def _sounds(config: Any, vocabulary: int) -> Probe:
    """Return spectrograms (rows, mel bins, frames), standard normal, and the decoder's tokens."""
    if config.model_type != "whisper":
        raise SoraError(
            f"no inputs can be made for a '{config.model_type}' model: of sounds only for Whisper"
        )
    g = torch.Generator().manual_seed(0)
    frames = 2 * config.max_source_positions  # its second convolution halves them
    features = torch.randn(_IMAGES, config.num_mel_bins, frames, generator=g)
    ids = _decoder_ids(config, vocabulary, _IMAGES)[:, : config.max_target_positions]
    inputs = {"input_features": features, "decoder_input_ids": ids}
    return Probe(inputs, None, 0, f"{_IMAGES} spectrograms of noise")


def _draw(vocabulary: int, special: set[int], shape: tuple[int, int], *, seed: int) -> Tensor:
    ordinary = [i for i in range(vocabulary) if i not in special] or list(range(vocabulary))
    g = torch.Generator().manual_seed(seed)
    return torch.tensor(ordinary)[torch.randint(len(ordinary), shape, generator=g)]


def _special_ids(config: Any) -> set[int]:
    """Return every id that has a meaning in the configuration."""
    values = {**config.to_dict(), **config.get_text_config().to_dict()}
    values_of_ids = (v for k, v in values.items() if k.endswith(("_token_id", "_token_ids")))
    return {
        i for v in values_of_ids for i in (v if isinstance(v, list) else [v]) if isinstance(i, int)
    }


def vocabulary_of(config: Any) -> int | None:
    """Return the number of rows of a model's embedding; None if it has none."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def longest(config: Any) -> int:
    """Return the maximum tokens of a row: half of the model's positions (some kinds lose a few)."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return _LENGTH
    return max(4, min(_LENGTH, positions // 2))
