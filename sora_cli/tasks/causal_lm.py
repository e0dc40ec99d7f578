"""Causal language models: instructions and answers, chats, or plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor, nn

from sora_cli.errors import SoraError
from sora_cli.tasks.base import Encoded
from sora_cli.tasks.decoder_checks import check_causal, check_packing
from sora_cli.tasks.dialogue_rows import Padding, cut, prompts_of, rows_of
from sora_cli.tasks.language import (
    IGNORED,
    Writing,
    generate_texts,
    token_sums,
)
from sora_cli.tasks.options import CausalLmOptions
from sora_cli.tasks.packing import packed
from sora_cli.tasks.prompts import Dialogue, chat_dialogue, messages_of, plain_dialogue
from sora_cli.tasks.templates import columns_in
from sora_cli.tasks.texts import COUNTED, require_column, texts_of

_FORMS = (("messages",), ("instruction", "input", "output"), ("text",))


class CausalLm(Writing):
    """The next token; of instructions and chats only the answers are learned."""

    name = "causal-lm"
    peft_type = "CAUSAL_LM"
    options: CausalLmOptions

    def bind(self, train: Dataset) -> None:
        self._columns = self._find_form(train.column_names)
        own = self.options.prompt not in ("auto", "chat", "plain")
        if own and "instruction" in self._columns:
            inputs = columns_in(self.options.prompt, train.column_names)
            for column in inputs:
                require_column(column, train.column_names, key="task.prompt")
        else:
            inputs = tuple(c for part, c in self._columns.items() if part != "output")
        self.input_columns, self.label_column = inputs, self._columns.get("output")
        if "text" in self._columns and super().needs_texts(self.metric_names):
            raise SoraError(
                "rows of plain text have no answers that could be written and scored",
                hint="task.metrics=[loss, perplexity]",
                key="task.metrics",
            )

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        for column in self._columns.values():
            require_column(column, rows.column_names, key="data")
        for part in {"text", "instruction", "output"} & self._columns.keys():
            texts_of(rows, self._columns[part], key=f"data.columns.{part}")
        dialogues = [self._dialogue(row, i, processor) for i, row in enumerate(rows)]
        made, limit = rows_of(dialogues, processor), self.data.max_length
        lengths = [len(row["input_ids"]) for row in made]
        made = [cut(row, limit) for row in made]
        examples = None if training else self._examples(dialogues, processor)
        if training:
            made = [row for row in made if max(row["labels"]) >= 0]
            made = packed(made, limit) if self.options.packing and made else made
        if not made:
            raise SoraError(
                f"no row has an answer within {limit} tokens",
                hint="data.max_length=MORE",
                key="data.max_length",
            )
        return Encoded(
            Dataset.from_list(made),
            np.array([len(row["input_ids"]) for row in made]),
            truncated=sum(n > limit for n in lengths),
            longest=max(lengths),
            examples=examples,
        )

    def model_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def check_model(self, model: nn.Module, processor: Any) -> None:
        super().check_model(model, processor)
        check_causal(model, str(model.config.name_or_path))  # type: ignore[union-attr]
        if self.options.packing:
            check_packing(model)

    def collator(self, processor: Any) -> Any:
        return Padding(processor.pad_token_id)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in batch.items() if name != "labels"}

    def kept(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        return token_sums(outputs["logits"][:, :-1], batch["labels"][:, 1:])

    def needs_texts(self, metrics: Sequence[str]) -> bool:
        return "text" not in self._columns and super().needs_texts(metrics)

    def write(self, model: Any, processor: Any, examples: Dataset) -> list[str]:
        return generate_texts(
            model,
            processor,
            examples["prompt"][:],
            batch=self.options.generation_batch_size,
            new=self.options.max_new_tokens,
        )

    def _find_form(self, columns: list[str]) -> dict[str, str]:
        """Columns by part, of the first form of rows that has all it needs."""
        named = set(self.data.columns)
        forms = sorted(_FORMS, key=lambda form: not named & set(form))
        for form in forms:
            found = self.find_columns(columns, form)
            if set(form) - {"input"} <= set(found) and named <= set(found):
                return found
        raise SoraError(
            f"no instructions, chats or texts found among the columns {', '.join(columns)}",
            hint="data.columns='{instruction: COLUMN, output: COLUMN}' or '{messages: COLUMN}' or "
            "'{text: COLUMN}'",
            key="data.columns",
        )

    def _dialogue(self, row: Mapping[str, Any], number: int, tokenizer: Any) -> Dialogue:
        try:
            return self._made(row, tokenizer)
        except SoraError as error:
            place = f"row {number} {COUNTED}"
            error.where = f"{place}; {error.where}" if error.where else place
            raise

    def _made(self, row: Mapping[str, Any], tokenizer: Any) -> Dialogue:
        columns, prompt, system = self._columns, self.options.prompt, self.options.system
        if "text" in columns:
            return Dialogue(((row[columns["text"]], True),), "")
        chat = prompt == "chat" or (prompt == "auto" and tokenizer.chat_template is not None)
        if chat or "messages" in columns:
            if tokenizer.chat_template is None:
                raise SoraError(
                    "the tokenizer has no chat template, which rows of messages need",
                    hint="name a model that was made for chats, or give instructions and outputs",
                    key="task.prompt" if prompt == "chat" else "model.path",
                )
            return chat_dialogue(messages_of(row, columns, system), tokenizer)
        own = None if prompt in ("auto", "plain") else prompt
        start = f"{system}\n\n" if system else ""
        return plain_dialogue(row, columns, own, start=start)

    def _examples(self, dialogues: Sequence[Dialogue], tokenizer: Any) -> Dataset:
        if "text" in self._columns:
            texts = [dialogue.pieces[0][0] for dialogue in dialogues]
            return Dataset.from_dict({"source": texts, "reference": [""] * len(texts)})
        return Dataset.from_dict(
            {
                "source": ["".join(dialogue.prompt) for dialogue in dialogues],
                "prompt": prompts_of(dialogues, tokenizer, limit=self.data.max_length),
                "reference": [dialogue.reference for dialogue in dialogues],
            }
        )
