"""From rows of every usual form to choices and the right one, and to scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import NO_EXAMPLES, Predictions
from sora_cli.tasks.multiple_choice import MultipleChoice
from tests.helpers_families import check_accumulation, choice_rows
from tests.helpers_models import tiny_bert_for
from tests.helpers_rows import assert_rows_add_up
from tests.helpers_runs import tiny_tokenizer

COPA = {"premise": "the cat sees", "question": "cause", "choice1": "a dog", "choice2": "a fish",
        "idx": 0, "label": 1}  # fmt: skip
SWAG = {"sent1": "the cat sees", "sent2": "a dog", **{f"ending{i}": f"{w} fish" for i, w in
        enumerate(["red", "blue", "old", "new"])}, "label": 2}  # fmt: skip
ARC = {"question": "the cat", "answerKey": "C",
       "choices": {"text": ["red", "blue", "old"], "label": ["A", "B", "C"]}}  # fmt: skip
HELLASWAG = {"ctx": "the cat", "endings": ["red", "blue", "old"], "label": "2"}
PIQA = {"goal": "the cat", "sol1": "red", "sol2": "blue", "label": 0}
TEMPLATES = ["{premise} What was the {question}?", "choice1", "so {choice2}"]


def _task(rows: list[dict[str, Any]], *, options: Any = None, **data: Any) -> MultipleChoice:
    block = DataBlock(path="unused", **data)
    task = create_task(TaskBlock(name="multiple-choice", **(options or {})), block)
    task.bind(Dataset.from_list(rows))
    assert isinstance(task, MultipleChoice)
    return task


def _encoded(task: MultipleChoice, rows: list[dict[str, Any]], **options: Any) -> Any:
    return task.encode(Dataset.from_list(rows), tiny_tokenizer(), **options)


@pytest.mark.parametrize(
    ("row", "data", "pairs", "right"),
    [
        (COPA, {}, [("the cat sees", "cause a dog"), ("the cat sees", "cause a fish")], 1),
        (COPA, {"text_columns": TEMPLATES},
         [("the cat sees What was the cause?", "a dog"),
          ("the cat sees What was the cause?", "so a fish")], 1),
        (SWAG, {}, [("the cat sees", f"a dog {w} fish") for w in ("red", "blue", "old", "new")], 2),
        (ARC, {}, [("the cat", w) for w in ("red", "blue", "old")], 2),
        ({**ARC, "answerKey": "1", "choices": [
            {"text": "red", "label": "1"}, {"text": "blue", "label": "2"}]}, {},
         [("the cat", "red"), ("the cat", "blue")], 0),
        (HELLASWAG, {}, [("the cat", w) for w in ("red", "blue", "old")], 2),
        (PIQA, {}, [("the cat", "red"), ("the cat", "blue")], 0),
        ({"endings": ["red", "blue"], "gold": "blue"}, {"label_column": "gold"},
         [("red",), ("blue",)], 1),
        ({"ask": "the cat", "picks": ["red", "blue"], "label": "b"},
         {"columns": {"question": "ask", "choices": "picks"}},
         [("the cat", "red"), ("the cat", "blue")], 1),
    ],
    ids=["copa", "copa-templates", "swag", "arc", "keys-from-1", "hellaswag", "piqa", "bare",
         "own-columns"],
)  # fmt: skip
def test_each_choice_is_read_after_the_context(
    row: Any, data: Any, pairs: list[tuple[str, ...]], right: int
) -> None:
    encoded = _encoded(_task([row, row], **data), [row, row])
    expected = [tiny_tokenizer()(*pair)["input_ids"] for pair in pairs]
    assert encoded.dataset["input_ids"][:] == [expected, expected]
    assert encoded.dataset["labels"][:] == [right, right]
    assert encoded.lengths.tolist() == [max(map(len, expected))] * 2
    assert (encoded.truncated, encoded.longest) == (0, max(map(len, expected)))


@pytest.mark.parametrize(
    ("row", "columns", "label"),
    [
        (COPA, ("premise", "question", "choice1", "choice2"), "label"),
        (ARC, ("question", "choices"), "answerKey"),
        (PIQA, ("goal", "sol1", "sol2"), "label"),
    ],
)
def test_the_columns_that_make_a_row_are_known(row: Any, columns: Any, label: str) -> None:
    task = _task([row])
    assert task.input_columns == columns
    assert task.label_column == label


def test_a_row_is_cut_where_its_longest_choice_is() -> None:
    rows = [{**PIQA, "sol2": "red " * 9}, PIQA]
    encoded = _encoded(_task(rows, max_length=8), rows)
    assert encoded.truncated == 1
    assert encoded.longest == 3 + 2 + 9
    assert encoded.lengths.tolist() == [8, 6]
    cut = tiny_tokenizer()("the cat", "red " * 9, truncation=True, max_length=8)["input_ids"]
    assert encoded.dataset["input_ids"][0][1] == cut


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        ([{"text": "cat", "label": 0}], {}, "no choices found among the columns text, label"),
        ([COPA], {"text_columns": ["premise", "choice1"]}, "two choices or more, not 2 texts"),
        ([COPA], {"text_columns": ["{premis}", "choice1", "choice2"]}, "no column 'premis'"),
        ([COPA], {"label_column": "right"}, "no column 'right'"),
        ([{k: v for k, v in PIQA.items() if k != "label"}], {}, "no column 'label'"),
        ([PIQA], {"columns": {"question": "goel"}}, "did you mean 'goal'"),
    ],
)
def test_columns_that_do_not_fit(rows: Any, data: Any, message: str) -> None:
    with pytest.raises(SoraError, match=message):
        _task(rows, **data)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (PIQA, {"sol2": None}, r"column 'sol2' has no text\nrow 1 \(counted from 0\)"),
        (PIQA, {"label": -1}, "label -1 .* is none of its row's choices\nrow 1 "),
        (PIQA, {"label": 2}, "label 2 .* is none of its row's choices\nrow 1 "),
        (PIQA, {"label": None}, "label null in .*\nrow 1 "),
        (HELLASWAG, {"label": ""}, "label '' in .*\nrow 1 "),
        (HELLASWAG, {"label": "D"}, "label 'D' in .*\nrow 1 "),
        (HELLASWAG, {"endings": ["red", "blue"]}, "has 2 choices here, 3 in other rows\nrow 1 "),
        (HELLASWAG, {"endings": ["red", "", "old"]}, "column 'endings' has no text\nrow 1 "),
        (HELLASWAG, {"endings": None}, "which is no list of choices"),
        (ARC, {"answerKey": "E"}, "label 'E' in .*\nrow 1 "),
    ],
)
def test_a_row_that_does_not_fit_is_named(good: Any, bad: Any, message: str) -> None:
    rows = [good, {**good, **bad}, good]
    with pytest.raises(SoraError, match=message):
        _task([good]).check(Dataset.from_list(rows))


def test_the_loss_is_the_models_own_over_all_rows() -> None:
    rows, model = choice_rows(9), tiny_bert_for("MultipleChoice")
    task = _task(rows, options={"metrics": ["accuracy", "f1"]})
    encoded, collate = _encoded(task, rows), task.collator(tiny_tokenizer())
    features = list(encoded.dataset)
    with torch.no_grad():
        whole = model(**collate(features))
        parts = [collate(features[:4]), collate(features[4:])]
        kept = torch.cat(
            [task.outputs_to_keep(model(**task.scored_inputs(part)), part) for part in parts]
        )
    assert kept.shape == (9, 3)
    assert sum(task.loss_items(part) for part in parts) == 9
    scores = task.scores(Predictions(kept.numpy(), task.labels(encoded), encoded))
    assert scores["loss"] == pytest.approx(float(whole.loss), rel=1e-5)
    right = [row["label"] for row in rows]
    assert scores["accuracy"] == pytest.approx(np.mean(whole.logits.argmax(-1).numpy() == right))
    assert set(scores) == {"accuracy", "f1", "loss"}
    assert_rows_add_up(task, Predictions(kept.numpy(), None, encoded), 9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_broken_output_spoils_every_score(value: float) -> None:
    rows = choice_rows(3)
    task = _task(rows)
    outputs = np.array([[0.5, 0.0, 0.0], [0.0, 0.5, value], [0.0, 0.0, 0.5]])
    predictions = Predictions(outputs, None, _encoded(task, rows))
    scores = task.scores(predictions)
    assert_rows_add_up(task, predictions, 3)
    assert set(scores) == {"accuracy", "loss"}
    assert all(math.isnan(score) for score in scores.values())


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """22 rows in steps of 8: the last step has 6 rows, in fewer and uneven micro-batches."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, task = tiny_bert_for("MultipleChoice", **dropout), {"name": "multiple-choice"}
    check_accumulation(tmp_path, model, tiny_tokenizer(), choice_rows(22), steps=3, task=task)


def test_readable_records_show_the_texts() -> None:
    task = _task([PIQA])
    encoded = _encoded(task, [PIQA, {**PIQA, "label": 1}])
    outputs = np.array([[0.5, 0.25], [0.0, 2.0]])
    assert task.readable(Predictions(outputs, None, encoded)) == [
        {"prediction": "red", "label": "red", "places": {"prediction": 0, "label": 0},
         "logits": [0.5, 0.25]},
        {"prediction": "blue", "label": "blue", "places": {"prediction": 1, "label": 1},
         "logits": [0.0, 2.0]},
    ]  # fmt: skip
    assert _encoded(task, [PIQA], training=True).examples is NO_EXAMPLES
