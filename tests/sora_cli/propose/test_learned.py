"""Which answers of chats `sora init` has learned."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from sora_cli.propose.learned import learned_answers

SAID = [
    {"role": "user", "content": "red cat"},
    {"role": "assistant", "content": "old dog"},
    {"role": "user", "content": "a bird"},
    {"role": "assistant", "content": "no fish"},
]


def value_of(chats: list[Any]) -> Any:
    proposed = learned_answers(Dataset.from_dict({"messages": chats}), "messages")
    return None if proposed is None else proposed.value


def test_chats_with_several_answers_are_learned_whole() -> None:
    other = [{"role": "user", "content": "the tree"}, *SAID[1:]]
    assert value_of([SAID, other, SAID[2:]]) == "all"


def test_rows_that_go_on_from_other_rows_teach_their_last_answer() -> None:
    assert value_of([SAID[:2], SAID]) == "last"


def test_nothing_is_proposed_for_single_answers() -> None:
    assert value_of([SAID[:2], SAID[2:]]) is None
    assert value_of([None, []]) is None
