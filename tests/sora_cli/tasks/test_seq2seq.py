"""Texts from texts: what is read and learned, how it is scored and written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.language import token_choices
from sora_cli.tasks.seq2seq import Seq2Seq
from tests.helpers_errors import refusal
from tests.helpers_families import check_accumulation, text_tokenizer
from tests.helpers_models import tiny_bart, tiny_t5
from tests.helpers_rows import assert_rows_add_up

ROWS = [
    {"source": "the cat sees a dog", "target": "old cat"},
    {"source": "red", "target": "a blue fish not new"},
    {"source": "every bird", "target": "no"},
]
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 0,
        "forced_eos_token_id": None}  # fmt: skip
WRITTEN = ["exact_match", "rouge1", "rougeL"]


def _bart() -> Any:
    return tiny_bart(**ENDS)


def _short_bart(positions: int) -> Any:
    config = _bart().config
    config.max_position_embeddings = positions
    return transformers.BartForConditionalGeneration(config).eval()


def _task(rows: Any = ROWS, *, data: Any = None, **options: Any) -> Seq2Seq:
    task = create_task(
        TaskBlock(name="seq2seq", **options), DataBlock(path="unused", **(data or {}))
    )
    task.bind(Dataset.from_list(rows))
    assert isinstance(task, Seq2Seq)
    return task


def _encoded(task: Seq2Seq, rows: Any = ROWS, *, tokenizer: Any = None, **options: Any) -> Any:
    return task.encode(Dataset.from_list(rows), tokenizer or text_tokenizer(), **options)


def _words(ids: list[int]) -> str:
    return " ".join(text_tokenizer().convert_ids_to_tokens(ids))


def test_sources_are_read_and_targets_learned_to_their_ends() -> None:
    encoded = _encoded(_task(prefix="not "))
    assert set(encoded.dataset.column_names) == {"input_ids", "attention_mask", "labels"}
    assert [_words(ids) for ids in encoded.dataset["input_ids"][:]] == [
        "not the cat sees a dog </s>", "not red </s>", "not every bird </s>",
    ]  # fmt: skip
    assert [_words(ids) for ids in encoded.dataset["labels"][:]] == [
        "old cat </s>", "a blue fish not new </s>", "no </s>",
    ]  # fmt: skip
    assert encoded.lengths.tolist() == [7, 3, 4]
    assert encoded.examples["source"][0] == "not the cat sees a dog"
    assert encoded.examples["prompt"][:] == encoded.dataset["input_ids"][:]
    assert "prompt" not in _encoded(_task(), training=True).examples.column_names


def test_a_tokenizer_that_ends_nothing_does_not_keep_the_model_from_learning_to_stop() -> None:
    encoded = _encoded(_task(max_target_length=4), tokenizer=text_tokenizer(ends=False))
    assert [_words(ids) for ids in encoded.dataset["labels"][:]] == [
        "old cat </s>", "a blue fish </s>", "no </s>",
    ]  # fmt: skip


def test_long_texts_are_cut_counted_and_told() -> None:
    task = _task(max_target_length=4, data={"max_length": 5})
    encoded = _encoded(task)
    assert (encoded.truncated, encoded.longest) == (1, 6)
    assert _words(encoded.dataset["input_ids"][0]) == "the cat sees a </s>"
    assert _words(encoded.dataset["labels"][1]) == "a blue fish </s>"
    assert task.remarks({"train": encoded, "validation": encoded}) == [
        "targets cut at 4 tokens: 1 of 3 of train, 1 of 3 of validation; the longest has 6: "
        "task.max_target_length=6"
    ]
    assert _task().remarks({"train": encoded}) == []
    for limit, unread in ((1, 3), (2, 0)):  # the end takes one
        cut = _encoded(_task(data={"max_length": limit + 1}, prefix="not "))
        assert cut.lacking == {"have no text within data.max_length": unread}


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        ([{"source": "cat", "reply": "dog"}], {}, "no column for 'target' among source, reply"),
        (ROWS, {"columns": {"source": "sorce"}}, "did you mean 'source'"),
        (ROWS, {"text_columns": ["{source} {kind}"]}, "no column 'kind'"),
        (ROWS, {"text_columns": ["source", "target"]}, "one column or template, the source, not 2"),
    ],
)
def test_columns_that_do_not_fit(rows: Any, data: Any, message: str) -> None:
    with pytest.raises(SoraError, match=message):
        _task(rows, data=data)


@pytest.mark.parametrize("part", ["source", "target"])
@pytest.mark.parametrize(("value", "message"), [("", "has no text"), (None, "has no text")])
def test_a_row_without_a_text_is_named(part: str, value: Any, message: str) -> None:
    with pytest.raises(SoraError, match=f"column '{part}' {message}\nrow 2 "):
        _task().check(Dataset.from_list([*ROWS[:2], {**ROWS[2], part: value}]))


def test_a_template_makes_a_source_of_several_columns() -> None:
    rows = [{"question": "the cat", "context": "a dog", "answer": 7}]
    task = _task(rows, data={"text_columns": ["{question} not {context}"]})
    assert task.input_columns == ("question", "context")
    encoded = _encoded(task, rows)
    assert _words(encoded.dataset["input_ids"][0]) == "the cat not a dog </s>"
    assert encoded.examples["reference"][:] == ["7"]


@pytest.mark.parametrize("make", [tiny_t5, _bart])
@pytest.mark.parametrize("shifted", [True, False], ids=["shifted", "by-the-model"])
def test_the_loss_is_the_models_own_over_all_tokens(make: Any, shifted: bool) -> None:
    task, model = _task(metrics=["loss", "perplexity", "token_accuracy"]), make()
    tokenizer = text_tokenizer()
    if shifted:  # else as models that shift labels themselves
        task.adapt_model(model, tokenizer)
    encoded, collate = _encoded(task), task.collator(tokenizer)
    features = list(encoded.dataset)
    with torch.no_grad():
        whole = model(**collate(features))
        assert whole.past_key_values is None  # no keys and values are copied for a next token
        tokens = [
            task.next_tokens(model(**task.scored_inputs(part)), part)
            for part in (collate([one]) for one in features)
        ]
        parts = [collate(features[:1]), collate(features[1:])]
        given = [task.scored_inputs(part) for part in parts]
        kept = [task.outputs_to_keep(model(**g), p) for g, p in zip(given, parts, strict=True)]
    assert ["labels" in inputs for inputs in given] == [not shifted] * 2
    predictions = Predictions(torch.cat(kept).numpy(), None, encoded)
    assert [task.loss_items(part) for part in parts] == [3, 6 + 2]
    scores = task.scores(predictions)
    assert scores["loss"] == pytest.approx(float(whole.loss), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(float(whole.loss)), rel=1e-5)
    labels = collate(features)["labels"]
    right = (whole.logits.argmax(-1) == labels)[labels != -100]
    assert scores["token_accuracy"] == pytest.approx(float(right.float().mean()))
    batch = task.next_tokens(whole, collate(features)).numpy()
    each = [token_choices(one.numpy())[0] for one in tokens]
    assert token_choices(batch) == each
    assert [token for row in each for token in row] == whole.logits.argmax(-1)[
        labels != -100
    ].tolist()


def test_padding_of_targets_is_at_their_ends() -> None:
    tokenizer = text_tokenizer()
    tokenizer.padding_side = "left"
    task = _task()
    task.adapt_model(tiny_t5(), tokenizer)
    batch = task.collator(tokenizer)(list(_encoded(task, tokenizer=tokenizer).dataset))
    assert batch["labels"][2].tolist()[2:] == [-100] * 4
    assert batch["decoder_input_ids"][2].tolist()[:2] == [0, batch["labels"][2][0]]


@pytest.mark.parametrize("make", [tiny_t5, _bart])
def test_what_is_written_is_the_likeliest_token_each_time(make: Any) -> None:
    task, model = _task(max_new_tokens=4, generation_batch_size=2), make()
    tokenizer = text_tokenizer()
    task.adapt_model(model, tokenizer)
    encoded = _encoded(task)
    written = task.write(model, tokenizer, encoded.examples)
    for source, text in zip(encoded.dataset["input_ids"][:], written, strict=True):
        ids = [0]
        while len(ids) < 5 and ids[-1] != 1:
            logits = model(
                input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids])
            ).logits
            ids.append(int(logits[0, -1].argmax()))
        assert text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_written_texts_are_scored_and_shown() -> None:
    task = _task(metrics=[*WRITTEN, "loss"])
    outputs = np.array([[1.0, 2, 1], [3.0, 6, 0], [0.0, 2, 2]])
    encoded, texts = _encoded(task), ["cat old", "a blue fish", "no"]
    # 'cat old' has both words of 'old cat', and one of them in order; 'a blue fish' 3 of 5
    expected = {"exact_match": 1 / 3, "rouge1": (1 + 0.75 + 1) / 3, "rougeL": (0.5 + 0.75 + 1) / 3,
                "loss": 0.4}  # fmt: skip
    predictions = Predictions(outputs, None, encoded, texts)
    assert task.scores(predictions) == pytest.approx(expected)
    assert_rows_add_up(task, predictions, 3)
    assert task.scores(Predictions(outputs, None, encoded)) == {"loss": pytest.approx(0.4)}
    assert task.readable(predictions)[1] == {
        "source": "red", "prediction": "a blue fish", "label": "a blue fish not new",
        "loss": 0.5, "tokens": 6,
    }  # fmt: skip


def test_one_broken_row_spoils_every_score() -> None:
    task = _task(metrics=[*WRITTEN, "token_accuracy", "perplexity"])
    outputs = np.array([[1.0, 2, 1], [math.nan, 6, 0], [0.0, 2, 2]])
    scores = task.scores(Predictions(outputs, None, _encoded(task), ["a", "b", "c"]))
    assert len(scores) == 6
    assert all(math.isnan(score) for score in scores.values())


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Targets of different lengths: a micro-batch weighs by its tokens, not by its rows."""
    rows = [{"source": r["source"], "target": " ".join([r["target"]] * (1 + i % 3))}
            for i, r in enumerate(ROWS * 8)][:22]  # fmt: skip
    model, task = tiny_t5(dropout_rate=0.0), {"name": "seq2seq"}  # its norms are of 32 bits
    check_accumulation(tmp_path, model, text_tokenizer(), rows, steps=3, near=1e-5, task=task)


@pytest.mark.parametrize(("key", "limit"), [("source", 6), ("target", 5)])
def test_texts_that_the_model_has_no_positions_for_are_refused(key: str, limit: int) -> None:
    task, model = _task(), _short_bart(limit - 1)
    task.adapt_model(model, text_tokenizer())
    with refusal():
        _encoded(task, ROWS[:1] if key == "source" else ROWS[1:])


def test_writing_ends_where_the_positions_do() -> None:
    model = _short_bart(7)
    task = _task(max_new_tokens=64)
    task.adapt_model(model, text_tokenizer())
    assert len(task.write(model, text_tokenizer(), _encoded(task).examples)) == 3


def test_a_model_that_names_no_first_token_is_refused() -> None:
    model = tiny_t5()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(SoraError, match="the first token of its texts"):
        _task().adapt_model(model, text_tokenizer())
    model.generation_config.decoder_start_token_id = 0
    _task().adapt_model(model, text_tokenizer())
    assert model.config.decoder_start_token_id == 0
