"""Rows of a prompt and answers to it: their columns, checks, keys and dialogues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, Value

from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import RowError
from sora_cli.recipe.task_options import AnswerOptions
from sora_cli.tasks.base import Task
from sora_cli.tasks.causal_lm import check_template, for_row
from sora_cli.tasks.messages import chat_rows
from sora_cli.tasks.pairs import check_answers, dialogues_of, is_chat, prompt_of
from sora_cli.tasks.prompts import Dialogue, uses_template
from sora_cli.tasks.texts import columns_in, require_column

ROUNDING = 64 * float(np.finfo(np.float32).eps)
"""Relative error of a log-probability or a reward in float32. The same model's differ by 20 eps in
batches of 64 and of 1 rows (SmolLM2-135M, 8 tokens), so no smaller difference is a preference."""
INPUTS = ("input_ids", "labels")
"""Columns of encoded rows that the model reads."""


class AnswerRows(Task):
    """The rows of a family that reads a prompt and answers to it."""

    sides: ClassVar[tuple[str, ...]]
    """The parts of a row that are answers."""
    label_column: str | None = None
    options: AnswerOptions

    def bind(self, train: Dataset) -> None:
        columns, sides = train.column_names, self.sides
        parts = self.find_columns(columns, ("prompt", *sides, "tools"))
        self._columns = {**parts, **self.require_columns(columns, sides)}
        texts = [self._columns[part] for part in self._texts]
        if all(isinstance(train.features[column], Value) for column in texts):
            self._columns.pop("tools", None)  # they go with messages
        inputs = list(self._columns.values())
        if self._own_prompt:
            fields = columns_in(self.options.prompt, columns)
            for column in fields:
                require_column(column, columns, key="task.prompt")
            inputs = list(dict.fromkeys([*fields, *inputs]))
        self.input_columns = tuple(inputs)

    @property
    def _texts(self) -> list[str]:
        """The parts that there is a column for: the prompt, and the answers."""
        return [part for part in ("prompt", *self.sides) if part in self._columns]

    def raw_keys(self, rows: Dataset) -> list[np.ndarray]:
        """Return a key of the prompt: all answers to one prompt are the same input."""
        if self._own_prompt:
            return [input_hashes(rows, columns_in(self.options.prompt, rows.column_names))]
        if "prompt" in self._columns:
            parts = [self._columns[p] for p in ("prompt", "tools") if p in self._columns]
            return [input_hashes(rows, parts)]
        prompts = []
        for i, row in enumerate(chat_rows(rows, self._columns.values())):
            for_row(i, check_answers, row, self._columns)
            prompts.append(for_row(i, prompt_of, row, self._columns))
        return [input_hashes(Dataset.from_dict({"prompt": prompts}), ["prompt"])]

    def check(self, rows: Dataset) -> None:
        for column in self._columns.values():
            require_column(column, rows.column_names)
        for i, row in enumerate(chat_rows(rows, self._columns.values())):
            for_row(i, check_answers, row, self._columns)

    def template(self, processor: Any) -> str | None:
        if "prompt" not in self._columns:
            return None
        return "the tokenizer's chat template" if self._chats(processor) else self._form

    @property
    def _own_prompt(self) -> bool:
        return self.options.prompt not in ("auto", "chat", "plain")

    @property
    def _form(self) -> str:
        return repr(self.options.prompt) if self._own_prompt else "### headings"

    def _chats(self, tokenizer: Any) -> bool:
        return uses_template(self.options.prompt, tokenizer)

    def _dialogues(self, row: Mapping[str, Any], tokenizer: Any) -> Sequence[Dialogue]:
        columns, chats = self._columns, self._chats(tokenizer)
        lists = any(is_chat(row[columns[part]]) for part in self._texts)
        whole = "prompt" not in columns and not lists
        if (self._own_prompt and (lists or whole)) or (self.options.system and whole):
            key = "prompt" if self._own_prompt else "system"
            raise RowError(
                f"task.{key} has no effect on these rows: it goes with a column of prompts",
                hint=f"leave task.{key} out, or name the column: data.columns.prompt=COLUMN",
                key=f"task.{key}",
            )
        needed = lists or (chats and "prompt" in columns)
        check_template(tokenizer, self.options.prompt, needed=needed)
        return dialogues_of(
            row,
            columns,
            tokenizer,
            chats=chats,
            template=self.options.prompt if self._own_prompt else None,
            system=self.options.system,
        )


def as_text(value: Any) -> str:
    """Return a text, or the messages of a list, as a person reads them."""
    if not is_chat(value):
        return str(value)
    return "\n\n".join(f"{one.get('role', '')}: {one.get('content', '')}" for one in value)
