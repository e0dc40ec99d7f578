"""Causal language models: instructions with answers, chats, or plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Size, Tensor, nn

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed
from sora_cli.data.places import RowError
from sora_cli.recipe.task_options import CausalLmOptions
from sora_cli.tasks.decoders import check_causal, check_packing, keep_packed_apart
from sora_cli.tasks.dialogues import (
    Padding,
    apart,
    cut,
    learned_tokens,
    packed,
    prompt_hashes,
    prompts_of,
    rows_of,
)
from sora_cli.tasks.encoded import NO_EXAMPLES, Encoded
from sora_cli.tasks.family.head import without
from sora_cli.tasks.language import Writing, generate_texts
from sora_cli.tasks.learned import (
    LEARNED,
    LearnedHead,
    learned_labels,
    learned_logits,
)
from sora_cli.tasks.messages import chat_rows, has_answer, messages_of, tools_of, with_answer
from sora_cli.tasks.prompts import Dialogue, chat_dialogue, plain_dialogue, uses_template
from sora_cli.tasks.stand_ins import TEXT, with_column
from sora_cli.tasks.texts import columns_in, require_column, texts_of

_INPUTS = ("messages", "instruction", "text")
_FORMS = (("messages", "tools"), ("instruction", "input", "output"), ("text",))
_OPTIONAL = {"input", "tools"}


class CausalLm(Writing):
    """Next-token prediction; for instructions and chats the loss covers the answers only."""

    answer_part = "output"
    options: CausalLmOptions
    _continues = False
    """True if rows of plain text are prompts that the model continues."""
    _end: int | None = None
    """The tokenizer's end-of-text token, after `encode`."""

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
                "these metrics score generated answers, but rows of plain text have no answers",
                hint="task.metrics=[loss, perplexity]",
                key="task.metrics",
            )
        if "text" in self._columns and self.options.learn == "last":
            raise SoraError(
                "task.learn=last goes with chats: rows of plain text have no answers",
                hint="task.learn=all",
                key="task.learn",
            )

    def stand_in(self, rows: Dataset) -> Dataset:
        columns, named = rows.column_names, self.data.columns
        parts = self.find_columns(columns, [p for p in _INPUTS if not named or p in named])
        if "messages" in parts:
            column = parts["messages"]
            chats = [with_answer(value, TEXT) for value in rows[column][:]]
            # the values need not tell the type: two calls may have arguments of different kinds
            return with_column(rows, column, chats, feature=rows.features[column])
        self._continues = "instruction" not in parts
        if self._continues:
            return rows
        return with_column(rows, self.part_column(columns, self.answer_part), [TEXT] * len(rows))

    def raw_keys(self, rows: Dataset) -> list[np.ndarray]:
        if "messages" in self._columns:  # a chat holds its own answer
            rows = self.stand_in(rows.select_columns(list(self.input_columns)))
        return super().raw_keys(rows)

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        """Return a key of the tokens before the last answer; of plain text, of all tokens."""
        whole = answers or ("text" in self._columns and not self._continues)
        table = rows.dataset.with_format("arrow")[:]
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        ids, labels = columns["input_ids"], columns["labels"]
        if "position_ids" in columns:
            ids, labels = (apart(part, columns["position_ids"]) for part in (ids, labels))
        return [prompt_hashes(ids, labels, whole=whole, end=self._end)]

    def check(self, rows: Dataset) -> None:
        columns = self._columns
        for column in columns.values():
            require_column(column, rows.column_names)
        for part in ("text", "instruction", "output"):
            if part in columns:
                texts_of(rows, columns[part], key=f"data.columns.{part}")
        if "messages" in columns:
            chats = []
            for i, row in enumerate(chat_rows(rows, columns.values())):
                chats.append(for_row(i, messages_of, row, columns, None))
                for_row(i, tools_of, row, columns)
            if not any(has_answer(chat) for chat in chats):
                raise RowError("there is nothing to learn: the assistant's answers are all empty")

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        self._end = processor.eos_token_id
        check_template(processor, self.options.prompt, needed=self._chats(processor))
        read = chat_rows(rows, self._columns.values())
        dialogues = [for_row(i, self._dialogue, row, processor) for i, row in enumerate(read)]
        made, limit = rows_of(dialogues, processor), self.data.max_length
        lengths = [len(row["input_ids"]) for row in made]
        before = [learned_tokens(row) for row in made]
        # before packing: no row may be longer than a bin
        made = [cut(row, limit) for row in made]
        after = [learned_tokens(row) for row in made]
        learned = [row for row, tokens in zip(made, after, strict=True) if tokens]
        examples = NO_EXAMPLES if training else self._examples(dialogues, processor)
        if not learned:
            raise SoraError(
                f"there is nothing to learn: no row has an answer within {limit} tokens",
                hint=f"data.max_length={max(lengths)}",
                key="data.max_length",
            )
        lost = "left out" if training else "not scored"
        answers = "text" not in self._columns  # cut plain text counts as truncated
        shorter = answers * sum(a < b for a, b in zip(after, before, strict=True))
        notes = {
            f"lose the end of their answers at data.max_length={limit}": shorter,
            f"have no answer within data.max_length={limit}: {lost}": len(made) - len(learned),
            "have an empty answer: only the end token is learned": sum(d.empty for d in dialogues),
            **Counter(remark for dialogue in dialogues for remark in dialogue.remarks),
        }
        if training:
            made = packed(learned, limit) if self.options.packing else learned
        return Encoded(
            Dataset.from_list(made),
            np.array([len(row["input_ids"]) for row in made]),
            truncated=sum(n > limit for n in lengths),
            longest=max(lengths),
            examples=examples,
            notes=notes,
        )

    def template(self, processor: Any) -> str | None:
        prompt = self.options.prompt
        if "text" in self._columns:
            return None
        if self._chats(processor):
            learned = {"all": "; all answers are learned", "last": "; the last answer is learned"}
            chats = learned[self.options.learn] if "messages" in self._columns else ""
            return f"the tokenizer's chat template{chats}"
        return "### headings" if prompt in ("auto", "plain") else repr(prompt)

    def adapt_model(self, model: nn.Module, processor: Any) -> None:
        super().adapt_model(model, processor)
        check_causal(model, str(model.config.name_or_path))  # type: ignore[union-attr]
        if self.options.packing:
            keep_packed_apart(model)
            check_packing(model)
        self.learned = LearnedHead.of(model)

    def collator(self, processor: Any) -> Any:
        return Padding(processor.pad_token_id)

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return len(batch[LEARNED])

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return without(batch, "labels")

    def predicted(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Size]:
        labels, places = batch["labels"], batch[LEARNED]
        logits = learned_logits(outputs["logits"], labels, places)
        return logits, learned_labels(labels, places), places, labels.shape

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
        """Return the columns by part for the first matching form: chat, instruction or text."""
        named = set(self.data.columns)
        forms = sorted(_FORMS, key=lambda form: not named & set(form))
        for form in forms:
            parts = self.find_columns(columns, form)
            if set(form) - _OPTIONAL <= set(parts) and named <= set(parts):
                return parts
        raise RowError(
            f"no instructions, chats or texts found among the columns {listed(columns)}",
            hint="data.columns='{instruction: COLUMN, output: COLUMN}' or '{messages: COLUMN}' or "
            "'{text: COLUMN}'",
            key="data.columns" if named else None,
        )

    def _chats(self, tokenizer: Any) -> bool:
        """Return True if rows use the tokenizer's chat template."""
        chat = uses_template(self.options.prompt, tokenizer)
        return "text" not in self._columns and (chat or "messages" in self._columns)

    def _dialogue(self, row: Mapping[str, Any], tokenizer: Any) -> Dialogue:
        columns, prompt, system = self._columns, self.options.prompt, self.options.system
        if "text" in columns:
            text = row[columns["text"]]
            if self._continues:
                return Dialogue(((text, False), (TEXT, True)), "")
            return Dialogue(((text, True),), "")
        if self._chats(tokenizer):
            return chat_dialogue(
                messages_of(row, columns, system),
                tokenizer,
                tools=tools_of(row, columns),
                last=self.options.learn == "last",
            )
        own = None if prompt in ("auto", "plain") else prompt
        start = f"{system}\n\n" if system else ""
        return plain_dialogue(row, columns, own, start=start)

    def _examples(self, dialogues: Sequence[Dialogue], tokenizer: Any) -> Dataset:
        if "text" in self._columns and not self._continues:
            texts = [dialogue.pieces[0][0] for dialogue in dialogues]
            return Dataset.from_dict({"source": texts, "reference": [""] * len(texts)})
        return Dataset.from_dict(
            {
                "source": ["".join(dialogue.prompt) for dialogue in dialogues],
                "prompt": prompts_of(dialogues, tokenizer, limit=self.data.max_length),
                "reference": [dialogue.reference for dialogue in dialogues],
            }
        )


def check_template(tokenizer: Any, prompt: str, *, needed: bool) -> None:
    """Check that a tokenizer has a chat template if rows need one.

    Args:
        prompt: the recipe's form of the prompt.
    """
    if needed and tokenizer.chat_template is None:
        raise SoraError(
            "the tokenizer has no chat template, but rows of messages need one",
            hint="name a chat model as model.path, or give texts, not messages",
            key="task.prompt" if prompt == "chat" else "model.path",
        )


def for_row(row: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function on a row; a `RowError` then names the row."""
    try:
        return function(*args)
    except RowError as error:
        error.set_row(row)
        raise
