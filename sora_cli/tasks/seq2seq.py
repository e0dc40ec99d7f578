"""Text generation from a source text, by an encoder and a decoder: T5, BART and similar models.

This file also checks a model: texts must fit its positions, and the decoder's first token must be
known.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn

from sora_cli.core.errors import SoraError
from sora_cli.data.repeats import list_hashes
from sora_cli.data.tokens import TOKENS, TRUNCATED, token_counts, tokenise, unread_rows
from sora_cli.recipe.task_options import Seq2SeqOptions
from sora_cli.tasks.encoded import Encoded, Lengths
from sora_cli.tasks.language import IGNORED, Writing, generate_texts
from sora_cli.tasks.stand_ins import TEXT, with_column
from sora_cli.tasks.texts import columns_in, require_column, texts_of

_BATCH = 1000  # targets tokenised at a time
_TARGET_TOKENS = "target_tokens"
"""Column: number of tokens of the target before the cut."""


@dataclass(frozen=True)
class Room:
    """Numbers of positions for tokens on each side; unlimited if positions are computed."""

    encoder: int = sys.maxsize
    decoder: int = sys.maxsize


def room_of(model: nn.Module) -> Room:
    """Return the sizes of a model's tables of positions: T5 has none, BART one per side."""
    sizes = {"encoder": sys.maxsize, "decoder": sys.maxsize}
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.endswith("embed_positions"):
            side = "decoder" if "decoder" in path.split(".") else "encoder"
            sizes[side] = module.num_embeddings - int(getattr(module, "offset", 0))
    return Room(**sizes)


def check_room(what: str, longest: int, room: int, key: str) -> None:
    """Check that texts fit into the model's positions.

    Args:
        what: "source" or "target".
        longest: tokens of the longest text, after the cut that `key` of the recipe sets.
    """
    if longest > room:
        raise SoraError(
            f"a {what} of {longest} tokens does not fit the model, which has {room} positions",
            hint=f"{key}={room}",
            key=key,
        )


def check_start(model: Any) -> None:
    """Check that the decoder's first token is known from one of the model's configurations."""
    if getattr(model.config, "decoder_start_token_id", None) is None:
        start = model.generation_config.decoder_start_token_id
        if start is None:
            raise SoraError(
                "the model does not name the first token of its texts",
                hint="set decoder_start_token_id in its config.json (often the padding token's)",
                key="model.path",
            )
        model.config.decoder_start_token_id = start


class Seq2Seq(Writing):
    """The encoder reads the source; the decoder learns the target, token by token."""

    answer_part = "target"
    options: Seq2SeqOptions
    _model: nn.Module | None = None
    _room = Room()

    def bind(self, train: Dataset) -> None:
        columns, own = train.column_names, self.data.text_columns
        if own is None:
            self._source = self.require_columns(columns, ["source"])["source"]
        elif len(own) == 1:
            self._source = own[0]
        else:
            raise SoraError(
                f"data.text_columns takes one column or template, the source, not {len(own)}",
                hint="data.text_columns=['{first} {second}']",
                key="data.text_columns",
            )
        self._target = self.label_column = self.require_columns(columns, ["target"])["target"]
        self.input_columns = columns_in(self._source, columns)
        for column in self.input_columns:
            require_column(column, columns, key="data.text_columns")

    def stand_in(self, rows: Dataset) -> Dataset:
        target = self.part_column(rows.column_names, self.answer_part)
        return with_column(rows, target, [TEXT] * len(rows))

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        (key,) = super().input_keys(rows)
        # a factor, since source and target may be equal
        return [key * np.uint64(3) + list_hashes(rows.dataset, "labels")] if answers else [key]

    def check(self, rows: Dataset) -> None:
        texts_of(rows, self._source, key="data.columns.source")
        texts_of(rows, self._target, key="data.columns.target")

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        sources = texts_of(rows, self._source, key="data.columns.source")
        targets = texts_of(rows, self._target, key="data.columns.target")
        sources = [f"{self.options.prefix}{text}" for text in sources]
        texts = Dataset.from_dict({"source": sources, "reference": targets})
        made = tokenise(
            texts.select_columns(["source"]), processor, max_length=self.data.max_length
        )
        labels, tokens = self._labels(targets, processor)
        lengths = token_counts(made)
        unread = unread_rows(
            made[TOKENS][:],
            processor,
            max_length=self.data.max_length,
            prefix=self.options.prefix,
        )
        check_room("source", int(lengths.max()), self._room.encoder, "data.max_length")
        check_room("target", max(map(len, labels)), self._room.decoder, "task.max_target_length")
        inputs = made.select_columns(["input_ids", "attention_mask"])
        prompts = made.select_columns(["input_ids"]).rename_column("input_ids", "prompt")
        examples = texts.add_column(_TARGET_TOKENS, tokens)
        return Encoded(
            inputs.add_column("labels", labels),
            lengths,
            truncated=sum(made[TRUNCATED][:]),
            longest=max(made[TOKENS][:]),
            examples=examples if training else concatenate_datasets([examples, prompts], axis=1),
            lacking={"have no text within data.max_length": int(unread.sum())},
        )

    def token_lengths(self, rows: Dataset, processor: Any) -> Lengths:
        encoded = self.encode(rows, processor, training=True)
        return Lengths(encoded.lengths, targets=np.asarray(encoded.examples[_TARGET_TOKENS][:]))

    def template(self, processor: Any) -> str | None:
        made = [] if self._source in self.input_columns else [repr(self._source)]
        return " of ".join([*map(repr, filter(None, [self.options.prefix])), *made]) or None

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        super().adapt_model(model, processor)
        check_start(model)
        processor.padding_side = "right"  # the decoder gets no mask, so padding must come last
        self._model, self._room = model, room_of(model)

    def collator(self, processor: Any) -> Any:
        """Return a collator that also makes `decoder_input_ids` if the model can shift labels."""
        from transformers import DataCollatorForSeq2Seq

        pad = DataCollatorForSeq2Seq(processor, model=self._model, label_pad_token_id=IGNORED)
        # Trainer turns the cache off in the model's configuration, but T5's decoder has its own
        # until: transformers > 5.24
        return lambda rows: {**pad(rows), "use_cache": False}

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave the labels out, unless the model must shift them itself."""
        if "decoder_input_ids" not in batch:
            return batch
        return {name: value for name, value in batch.items() if name != "labels"}

    def predicted(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
        labels = batch["labels"]
        places = torch.arange(labels.numel(), device=labels.device)
        return outputs["logits"].flatten(0, 1), labels.flatten(), places, labels.shape

    def write(self, model: Any, processor: Any, examples: Dataset) -> list[str]:
        new = self.options.max_new_tokens
        return generate_texts(
            model,
            processor,
            examples["prompt"][:],
            batch=self.options.generation_batch_size,
            new=min(new, self._room.decoder - 1),  # the start token takes a position
        )

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        """Count the targets that were cut, for each split."""
        limit, counts, longest = self.options.max_target_length, [], 0
        for name, part in parts.items():
            tokens = np.asarray(part.examples[_TARGET_TOKENS][:])
            if cut := int((tokens > limit).sum()):
                counts.append(f"{cut:,} of {len(tokens):,} of {name}")
                longest = max(longest, int(tokens.max()))
        if not counts:
            return []
        return [
            f"targets cut at {limit} tokens: {', '.join(counts)}; the longest has {longest:,}: "
            f"task.max_target_length={longest}"
        ]

    def _labels(self, targets: Sequence[str], tokenizer: Any) -> tuple[list[list[int]], list[int]]:
        """Return each target's tokens with its end token, and their number before the cut."""
        limit, end = self.options.max_target_length, tokenizer.eos_token_id
        labels: list[list[int]] = []
        counts: list[int] = []
        for start in range(0, len(targets), _BATCH):
            part = list(targets[start : start + _BATCH])
            whole = tokenizer(text_target=part, truncation=False, verbose=False)["input_ids"]
            cut = whole
            if any(len(ids) > limit for ids in whole):
                cut = tokenizer(text_target=part, truncation=True, max_length=limit)["input_ids"]
            # a model that never learns the end token never stops generating
            for all_ids, ids in zip(whole, cut, strict=True):
                missing = end is not None and end not in all_ids
                counts.append(len(all_ids) + missing)
                labels.append([*ids[: limit - 1], end] if missing else ids)
        return labels, counts
