"""Pairs of answers in each form that rows come in: what is read, and what is learned of both."""

from __future__ import annotations

from typing import Any

import pytest

from sora_cli.data.places import RowError
from sora_cli.tasks.pairs import check_answers, dialogues_of
from tests.helpers_chat import chat_tokenizer

PROMPTED = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
BOTH = {"chosen": "chosen", "rejected": "rejected"}
READ = "<|im_start|> user red cat <|im_end|> <|im_start|> assistant "


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = said("user", "red cat")
LISTS = {
    "chosen": [ASKED, said("assistant", "old dog")],
    "rejected": [ASKED, said("assistant", "no")],
}


def pieces(
    row: dict[str, Any],
    columns: dict[str, str] = PROMPTED,
    *,
    chats: bool = True,
    template: str | None = None,
    system: str | None = None,
) -> list[tuple[str, str]]:
    """Return (text that is read, text that is learned) of both answers."""
    check_answers(row, columns)
    pair = dialogues_of(
        row, columns, chat_tokenizer(), chats=chats, template=template, system=system
    )
    made = []
    for dialogue in pair:
        learned = [i for i, (_, learned) in enumerate(dialogue.pieces) if learned]
        assert learned == [1]
        made.append((dialogue.pieces[0][0], dialogue.pieces[1][0]))
    return made


ANSWERS = [(READ, "old dog <|im_end|>"), (READ, "no <|im_end|>")]
TEXTS = {"prompt": "red cat", "chosen": "old dog", "rejected": "no"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (TEXTS, PROMPTED),
        (LISTS, BOTH),
        ({"prompt": "red cat", **LISTS}, PROMPTED),
        ({"prompt": [ASKED], "chosen": "old dog", "rejected": "no"}, PROMPTED),
        ({"prompt": "red cat", **{side: LISTS[side][1:] for side in LISTS}}, PROMPTED),
        ({"prompt": [ASKED], **{side: LISTS[side][1:] for side in LISTS}}, PROMPTED),
    ],
    ids=["texts", "lists", "lists with the prompt beside", "a list and texts", "a text and answers",
         "lists of the prompt and the answers"],
)  # fmt: skip
def test_every_form_of_a_pair_becomes_the_same_chat(
    row: dict[str, Any], columns: dict[str, str]
) -> None:
    assert [(a, b.strip()) for a, b in pieces(row, columns)] == ANSWERS


def test_only_the_last_answer_of_a_longer_chat_is_learned() -> None:
    before = [ASKED, said("assistant", "old dog"), said("user", "a bird")]
    row = {side: [*before, said("assistant", text)] for side, text in
           (("chosen", "no fish"), ("rejected", "a fish"))}  # fmt: skip
    chosen, rejected = pieces(row, BOTH)
    assert chosen[0] == rejected[0]
    assert chosen[0].endswith("old dog <|im_end|> <|im_start|> user a bird <|im_end|> "
                              "<|im_start|> assistant ")  # fmt: skip
    assert (chosen[1].split()[0], rejected[1].split()[0]) == ("no", "a")


def test_texts_that_hold_the_prompt_are_split_where_they_begin_to_differ() -> None:
    row = {side: f"\n\nHuman: red cat\n\nAssistant: {text}" for side, text in
           (("chosen", "old dog"), ("rejected", "older bird"))}  # fmt: skip
    start = "\n\nHuman: red cat\n\nAssistant:"  # a word that begins alike belongs to the answers
    assert pieces(row, BOTH) == [(start, " old dog"), (start, " older bird")]
    row = {"chosen": "red cat\nold dog", "rejected": "red cat\nno"}
    assert pieces(row, BOTH) == [("red cat\n", "old dog"), ("red cat\n", "no")]


def test_a_system_message_comes_first() -> None:
    (read, _), _ = pieces(TEXTS, system="every")
    assert read == f"<|im_start|> system every <|im_end|> {READ}"
    (read, _), _ = pieces(LISTS, BOTH, system="every")
    assert read == f"<|im_start|> system every <|im_end|> {READ}"
    (read, _), _ = pieces(TEXTS, chats=False, system="every")
    assert read == "every\n\n### Instruction:\nred cat\n\n### Response:\n"


def test_a_form_of_ones_own_takes_any_column() -> None:
    row = {**TEXTS, "answer": "blue"}
    made = pieces(row, chats=False, template="{answer}: {prompt} = ")
    assert made == [("blue: red cat = ", "old dog"), ("blue: red cat = ", "no")]


def test_columns_may_have_other_names() -> None:
    row = {"ask": "red cat", "good": "old dog", "bad": "no"}
    made = pieces(row, {"prompt": "ask", "chosen": "good", "rejected": "bad"}, chats=False)
    assert [learned for _, learned in made] == ["old dog", "no"]
    with pytest.raises(RowError, match="column 'bad' has an empty answer"):
        check_answers({**row, "bad": "\n"}, {"prompt": "ask", "chosen": "good", "rejected": "bad"})
