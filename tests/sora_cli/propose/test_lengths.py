"""Tokens of rows before anything is cut, as each family counts them without a model."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from sora_cli.data.places import Origin
from sora_cli.propose.proposal import token_lengths
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Lengths
from tests.helpers_images import corner_rows, pair_processor, tiny_image_processor
from tests.helpers_runs import tiny_tokenizer
from tests.present import present

_UNCUT = 10**6
PAIRS = [{"source": "the cat", "target": "a"}, {"source": "the", "target": "the cat sees"}]
ANSWER = {"text": ["cat"], "answer_start": [4]}
SPANS = [{"question": "the", "context": "the cat sees the dog", "answers": ANSWER}]


def _counted(name: str, rows: Dataset, processor: Any, **options: Any) -> Lengths | None:
    task = create_task(TaskBlock(name=name, **options), DataBlock(path="a", max_length=_UNCUT))
    task.bind(rows)
    return token_lengths(task, rows, Origin("train"), processor)


def test_images_have_no_tokens_and_their_texts_have() -> None:
    rows = corner_rows(4)
    assert _counted("image-classification", rows, tiny_image_processor()) is None
    found = present(_counted("image-text", rows, pair_processor()))
    assert (found.tokens.tolist(), found.targets, found.window) == ([5] * 4, None, None)


@pytest.mark.parametrize(
    ("name", "rows", "options"),
    [("seq2seq", PAIRS, {"max_target_length": _UNCUT}), ("question-answering", SPANS, {})],
)
def test_what_is_written_or_read_in_windows_is_said(
    name: str, rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    found = present(_counted(name, Dataset.from_list(rows), tiny_tokenizer(), **options))
    if name == "seq2seq":
        assert found.targets is not None
        assert (found.tokens.tolist(), found.targets.tolist()) == ([4, 3], [3, 5])
    assert found.window == (None if name == "seq2seq" else 384)
