"""Propose which answers of a chat are learned, by the answers that rows have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from datasets import Dataset

from sora_cli.core.console import count
from sora_cli.data.columns import LOOKED_AT
from sora_cli.data.places import RowError
from sora_cli.propose.rules import Proposed
from sora_cli.tasks.messages import ASSISTANT, chat_rows, message_list


def learned_answers(rows: Dataset, column: str) -> Proposed | None:
    """Propose `task.learn` for chats; None: no chat has several answers.

    An agent's log may have a row for each call of the model, which repeats all before it. Then
    every answer is the last one of a row, and learning all of each row would learn the first
    answers most.
    """
    # the first rows, and not some: those that repeat each other are neighbours
    seen = rows.select_columns([column]).select(range(min(len(rows), LOOKED_AT)))
    chats = list(_beginnings(seen, column))
    several = [beginnings for beginnings in chats if len(beginnings) > 1]
    if not several:
        return None
    whole = {beginnings[-1] for beginnings in chats if beginnings}
    again = sum(any(key in whole for key in beginnings[:-1]) for beginnings in several)
    if 2 * again >= len(several):
        why = f"{count(again)} chats go on from another row's, whose last answer is learned there"
        return Proposed("last", why)
    mean = np.mean([len(beginnings) for beginnings in several])
    return Proposed(
        "all", f"answers; {count(len(several))} chats have several, {mean:.1f} on average"
    )


def _beginnings(rows: Dataset, column: str) -> Iterator[list[int]]:
    """Yield keys of each chat's beginnings: up to its first answer, its second, and so on."""
    for row in chat_rows(rows, [column]):
        keys, key = [], 0
        with suppress(RowError):  # checked, and told, with all rows
            for message in message_list(row[column], column):
                key = hash((key, json.dumps(message, sort_keys=True, default=str)))
                if message["role"] == ASSISTANT:
                    keys.append(key)
        yield keys
