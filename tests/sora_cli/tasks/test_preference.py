"""Pairs as the model gets them: how they are cut, left out, and put into a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import normalizers

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.preference import Preference
from tests.helpers_chat import chat_tokenizer

LONG = "the bird sees a red cat and no fish"
ROWS = [
    {"prompt": "red cat", "chosen": "old dog", "rejected": "no"},
    {"prompt": LONG, "chosen": "a bird", "rejected": "the cat sees a fish and a dog"},
]


def encoded(rows: list[dict[str, Any]], *, limit: int = 64, training: bool = True,
            template: bool = True, **options: Any) -> tuple[Preference, Encoded]:  # fmt: skip
    data = Dataset.from_list(rows)
    task = create_task(
        TaskBlock(name="preference", **options), DataBlock(path="unused", max_length=limit)
    )
    assert isinstance(task, Preference)
    task.bind(data)
    task.check(data)
    tokenizer = chat_tokenizer() if template else chat_tokenizer(template=None)
    return task, task.encode(data, tokenizer, training=training)


def texts(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (tokens before the answer, tokens of the answer) of both sides."""
    tokenizer, made = chat_tokenizer(), []
    for ids, labels in zip(row["input_ids"], row["labels"], strict=True):
        learned = [label for label in labels if label != IGNORED]
        assert ids[len(ids) - len(learned) :] == learned
        words = tokenizer.convert_ids_to_tokens(ids)
        at = len(ids) - len(learned)
        made.append((" ".join(words[:at]), " ".join(words[at:])))
    return made


def test_both_answers_follow_the_same_prompt() -> None:
    task, rows = encoded(ROWS)
    start = "<|im_start|> user red cat <|im_end|> <|im_start|> assistant"
    assert texts(rows.dataset[0]) == [(start, "old dog <|im_end|>"), (start, "no <|im_end|>")]
    assert task.input_columns == ("prompt", "chosen", "rejected")
    assert rows.lengths.tolist() == [10, 23]  # of the longer side
    assert (rows.truncated, rows.lacking) == (0, dict.fromkeys(rows.lacking, 0))


@pytest.mark.parametrize("limit", range(2, 24))
def test_a_cut_leaves_the_same_prompt_on_both_sides(limit: int) -> None:
    _, rows = encoded(ROWS[1:], limit=limit)
    _, whole = encoded(ROWS[1:])
    pair, before = texts(rows.dataset[0]), texts(whole.dataset[0])
    assert pair[0][0] == pair[1][0]
    assert pair[0][0]
    assert before[0][0].endswith(pair[0][0])  # the prompt loses its beginning
    for (_, answer), (_, full) in zip(pair, before, strict=True):
        assert answer
        assert full.startswith(answer)  # answers lose their ends
    lengths = [len(ids) for ids in rows.dataset[0]["input_ids"]]
    assert max(lengths) == min(limit, 23)
    assert rows.truncated == int(limit < 23)
    kept = len(pair[1][1].split())
    assert kept >= min(9, limit // 2)
    assert sum(rows.notes.values()) == (kept < 9) + (len(pair[0][1].split()) < 3)


def test_an_answer_without_any_token_is_refused() -> None:
    task, _ = encoded(ROWS)
    tokenizer = chat_tokenizer(template=None)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    tokenizer.eos_token = None
    rows = Dataset.from_list([ROWS[0], {**ROWS[0], "rejected": "~"}])
    with pytest.raises(RowError, match="an answer has no token") as caught:
        task.encode(rows, tokenizer)
    assert caught.value.row == 1


def test_equal_answers_are_left_out_of_training_and_counted() -> None:
    rows = [*ROWS, {"prompt": "a", "chosen": "no", "rejected": "no"}]
    _, made = encoded(rows)
    assert len(made.dataset) == 2
    assert {what: n for what, n in made.lacking.items() if n} == {
        "have two equal answers, and are left out": 1
    }
    _, scored = encoded(rows, training=False)
    assert len(scored.dataset) == 3
    assert scored.notes["have two equal answers, so that neither is preferred"] == 1
    assert sum(scored.lacking.values()) == 0


def test_answers_that_only_the_cut_makes_equal_are_told_apart() -> None:
    rows = [{"prompt": "a", "chosen": "no old fish", "rejected": "no old dog"}, ROWS[0]]
    _, made = encoded(rows, limit=4)
    assert {what: n for what, n in made.lacking.items() if n} == {
        "have two answers that are equal within data.max_length=4, and are left out": 1
    }


def test_a_batch_holds_both_answers_of_each_pair() -> None:
    task, rows = encoded(ROWS)
    rows = task.with_reference(rows, np.array([[-1.0, -2.0], [-3.0, -4.0]]))
    batch = task.collator(chat_tokenizer())([rows.dataset[i] for i in range(2)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 2, 23)
    assert batch["reference"].tolist() == [[-1, -2], [-3, -4]]
    assert task.loss_items(batch) == 2
    for i, row in enumerate(rows.dataset):
        for side in (0, 1):
            n = len(row["input_ids"][side])
            assert batch["input_ids"][i, side, :n].tolist() == row["input_ids"][side]
            assert batch["labels"][i, side, :n].tolist() == row["labels"][side]
            assert batch["attention_mask"][i, side].tolist() == [1] * n + [0] * (23 - n)
            assert set(batch["labels"][i, side, n:].tolist()) <= {IGNORED}


def test_without_a_chat_template_prompts_have_headings() -> None:
    task, rows = encoded(ROWS, template=False, system="every")
    assert texts(rows.dataset[0])[0] == ("every ### Instruction: red cat ### Response:",
                                         "old dog <|im_end|>")  # fmt: skip
    assert task.template(chat_tokenizer(template=None)) == "### headings"


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({s: [{"role": "user", "content": "a"}, {"role": "assistant", "content": t}]
          for s, t in (("chosen", "no"), ("rejected", "old"))}, {"prompt": "{chosen}"}),
        ({"chosen": "red cat no", "rejected": "red cat old"}, {"system": "every"}),
    ],
)  # fmt: skip
def test_a_form_that_has_no_effect_is_refused(row: dict[str, Any], options: dict[str, str]) -> None:
    with pytest.raises(SoraError, match="has no effect on these rows") as caught:
        encoded([row], **options)
    assert caught.value.key == f"task.{next(iter(options))}"


def test_rounding_is_no_preference() -> None:
    """The same model's log-probabilities, in batches of other sizes, are not exactly equal."""
    task, _ = encoded(ROWS)
    reference = np.array([[-300.0, -40.0], [-40.0, -300.0], [-300.0, -40.0], [-9.0, -9.0]])
    gained = np.array([[1e-4, 0.0], [1e-5, -1e-5], [0.05, 0.0], [0.0, 0.05]])
    logps = reference + gained
    sums = np.stack([-logps, np.full_like(logps, 8.0), np.zeros_like(logps)], axis=-1)
    made = Predictions(sums, None, reference=reference)
    assert task.metrics(made)["rewards/accuracies"] == 0.25
    assert task.answer_columns(made)[0] == ["rejected", "rejected", "chosen", "rejected"]
    assert task.metrics(made)["rewards/margins"] > 0  # margins themselves are shown as they are


def test_without_a_reference_rewards_are_the_log_probabilities() -> None:
    task, _ = encoded(ROWS, loss="simpo")
    logps = np.array([[-10.0, -20.0], [-30.0, -12.0]])
    sums = np.stack([-logps, np.full_like(logps, 4.0), np.zeros_like(logps)], axis=-1)
    alone, beside = (
        task.metrics(Predictions(sums, None, reference=reference))
        for reference in (None, np.zeros_like(logps))
    )
    assert alone == beside
    assert alone["rewards/accuracies"] == 0.5
