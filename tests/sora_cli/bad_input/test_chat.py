"""`sora chat` and `sora generate`: models that write nothing, and options that are not possible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers_chat import write_chat_base
from tests.sora_cli.bad_input.runner import Case, bad

CHAT, GENERATE = ("chat", "models/adapter"), ("generate", "models/adapter", "-p", "cat")


def chats(folder: Path) -> None:
    """A model to talk with."""
    write_chat_base(folder)


CASES: dict[str, Case] = {
    "a classifier": bad("models/adapter does not write texts: its task is sequence-classification",
        *CHAT, then="sora predict models/adapter FILE -o OUT"),
    "a prompt for a classifier": bad("does not write texts", *GENERATE, then="sora predict"),
    "a second one that is a classifier": bad("models/adapter does not write texts", "chat", "m",
        "models/adapter", m=chats),
    "nobody": bad("there is no model at ./gone", "chat", "./gone", then="sora chat DIR"),
    "no prompt": bad("Missing option", "generate", "m", then="sora generate --help"),
    "an empty prompt": bad("the prompt is empty", "generate", "m", "-p", " ", m=chats),
    "a prompt too long": bad("leaves no room for an answer", "generate", "m", "-p", "cat " * 300,
        m=chats),
    "a temperature of zero": bad("--temperature must be above 0", *CHAT, "--temperature", "0",
        then="--greedy"),
    "a share of none": bad("--top-p is a share above 0", *CHAT, "--top-p", "0"),
    "a penalty of zero": bad("--repetition-penalty must be above 0", *GENERATE,
        "--repetition-penalty", "0"),
    "drawn and not drawn": bad("--seed does not go with --greedy", *GENERATE, "--greedy", "--seed",
        "1"),
    "a dtype that is none": bad("there is no --dtype 'int8'", *CHAT, "--dtype", "int8",
        then="one of float32"),
    "nothing around it, and something": bad("--system does not go with --raw", *GENERATE, "--raw",
        "--system", "x"),
    "tokens of none": bad("Invalid value for '--max-new-tokens'", *CHAT, "--max-new-tokens", "0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_words(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)
