"""Words and tags: which token is of which word, and how entities are scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.tags import tags_inside
from sora_cli.tasks.token_classification import TokenClassification
from tests.helpers_errors import refusal
from tests.helpers_families import check_accumulation, tagged_rows
from tests.helpers_models import tiny_bert_for, tiny_llama
from tests.helpers_rows import assert_rows_add_up
from tests.helpers_runs import tiny_tokenizer

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ROW = {
    "tokens": ["Zoë", "O'Neil-Smith", "left", "São", "Paulo", "\U0001f408", "."],
    "tags": [1, 2, 0, 3, 4, 0, 0],
}


def _rows(rows: list[dict[str, Any]], names: list[str] | None = NAMES) -> Dataset:
    tag = Value("int64") if names is None else ClassLabel(names=names)
    return Dataset.from_list(
        rows, Features({"tokens": Sequence(Value("string")), "tags": Sequence(tag)})
    )


def _task(rows: Dataset | None = None, *, data: Any = None, **options: Any) -> TokenClassification:
    block = DataBlock(path="unused", **{"max_length": 64, **(data or {})})
    task = create_task(TaskBlock(name="token-classification", **options), block)
    task.bind(_rows([ROW]) if rows is None else rows)
    assert isinstance(task, TokenClassification)
    return task


def _pieces(kind: str, **options: Any) -> PreTrainedTokenizerFast:
    """A small tokenizer of each kind that real models have, which cuts most words to pieces."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer: Any = {
        "byte-level": trainers.BpeTrainer(
            vocab_size=270, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
        "wordpiece": trainers.WordPieceTrainer(
            vocab_size=60, special_tokens=special, show_progress=False
        ),
        "metaspace": trainers.UnigramTrainer(
            vocab_size=40, special_tokens=special, unk_token="[UNK]", show_progress=False
        ),
    }[kind]  # fmt: skip
    model: Any = {"byte-level": models.BPE(), "wordpiece": models.WordPiece(unk_token="[UNK]"),
                  "metaspace": models.Unigram()}[kind]  # fmt: skip
    made = Tokenizer(model)
    made.pre_tokenizer = {
        "byte-level": pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True),
        "wordpiece": pre_tokenizers.BertPreTokenizer(),
        "metaspace": pre_tokenizers.Metaspace(),
    }[kind]
    made.train_from_iterator([" ".join(ROW["tokens"])], trainer)  # type: ignore[arg-type]
    if kind == "wordpiece":
        ids = [("[CLS]", 2), ("[SEP]", 3)]
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", **options}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def test_places_are_those_of_the_librarys_words() -> None:
    tokenizer = _pieces("wordpiece")
    encoded = _task().encode(_rows([ROW]), tokenizer)
    out = tokenizer([ROW["tokens"]], is_split_into_words=True)
    row = encoded.dataset[0]
    assert row["input_ids"] == out["input_ids"][0]
    words = out.word_ids(0)
    expected = [
        -100 if word is None or word == before else word
        for before, word in zip([None, *words[:-1]], words, strict=True)
    ]
    assert row["places"] == expected
    assert len(words) > len(ROW["tokens"]) + 5


@pytest.mark.parametrize("kind", ["byte-level", "metaspace", "wordpiece"])
def test_every_word_has_its_tag_at_its_first_token(kind: str) -> None:
    tokenizer = _pieces(kind)
    row = _task().encode(_rows([ROW]), tokenizer).dataset[0]
    firsts = [place for place in row["places"] if place != -100]
    assert firsts == list(range(len(ROW["tokens"])))
    assert [label for label in row["labels"] if label != -100] == ROW["tags"]
    text = tokenizer(" ".join(ROW["tokens"]), return_offsets_mapping=True)
    assert row["input_ids"] == text["input_ids"]  # as running text is cut
    for word, index in zip(
        ROW["tokens"], np.flatnonzero(np.array(row["places"]) >= 0), strict=True
    ):
        start, end = text["offset_mapping"][index]
        piece = " ".join(ROW["tokens"])[start:end].strip()
        assert piece == "" or word.startswith(piece)


def test_all_pieces_of_a_word_may_be_learned() -> None:
    tokenizer = _pieces("wordpiece")
    first, every = (
        _task(label_all_pieces=flag).encode(_rows([ROW]), tokenizer).dataset[0]
        for flag in (False, True)
    )
    words = tokenizer([ROW["tokens"]], is_split_into_words=True).word_ids(0)
    expected = []
    for word, place in zip(words, first["places"], strict=True):
        tag = -100 if word is None else ROW["tags"][word]
        inside = {1: 2, 3: 4}.get(tag, tag)
        expected.append(tag if place != -100 else inside)
    assert every["labels"] == expected
    assert every["places"] == first["places"]
    assert tags_inside(["B-X", "O", "I-Y", "B-Y"]) == [0, 1, 2, 2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_at_the_right(side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    rows = _rows([{"tokens": ["the", "cat"], "tags": [0, 1]}, {"tokens": ["dog"], "tags": [2]}])
    task = _task()
    batch = task.collator(tokenizer)(list(task.encode(rows, tokenizer).dataset))
    assert batch["labels"].tolist() == [[-100, 0, 1, -100], [-100, 2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert task.loss_items(batch) == 3


# --- names


def test_names_are_the_datas() -> None:
    task = _task()
    assert task.label_names == NAMES
    assert task.model_options()["id2label"] == dict(enumerate(NAMES))
    assert task.model_options()["num_labels"] == 5


def test_names_of_tags_that_are_texts() -> None:
    texts = Dataset.from_list([{"words": ["a", "b"], "ner_tags": ["B-PER", "O"]},
                               {"words": ["c"], "ner_tags": ["B-LOC"]}])  # fmt: skip
    task = _task(texts)
    assert task.label_names == ["B-LOC", "B-PER", "O"]
    assert (task.input_columns, task.label_column) == (("words",), "ner_tags")
    encoded = task.encode(texts, tiny_tokenizer())
    assert encoded.dataset["labels"][:] == [[-100, 1, 2, -100], [-100, 0, -100]]


def test_numbers_are_named_by_the_recipe() -> None:
    numbers = _rows([ROW], names=None)
    assert _task(numbers, data={"label_names": NAMES}).label_names == NAMES
    with refusal():
        _task(numbers)
    assert _task(numbers, metrics=["accuracy"]).label_names == list("01234")


def test_other_tags_have_no_entities() -> None:
    words = Dataset.from_list([{"tokens": ["cat", "sees"], "pos_tags": ["NOUN", "VERB"]}])
    with pytest.raises(SoraError, match="tag 'NOUN' marks no entity") as caught:
        _task(words)
    assert caught.value.key == "task.metrics"
    assert _task(words, metrics=["accuracy"]).label_names == ["NOUN", "VERB"]


@pytest.mark.parametrize(
    ("row", "message", "key"),
    [
        ({"tokens": [], "tags": []}, "column 'tokens' has no words", "tokens"),
        ({"tokens": ["cat"], "tags": [0, 1]}, "2 tags for 1 words", "tags"),
        ({"tokens": ["cat"], "tags": None}, "which is no list", "tags"),
        ({"tokens": ["cat", None], "tags": [0, 0]}, "'tokens' holds null", "tokens"),
    ],
)
def test_a_row_that_does_not_fit_is_named(row: Any, message: str, key: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        _task().check(_rows([ROW, row]))
    assert caught.value.row == 1
    assert f"data.columns.{key}" in str(caught.value.hint)


def test_a_tag_that_training_does_not_have_is_refused() -> None:
    train, test = (Dataset.from_list([{"tokens": ["a", "b"], "tags": tags}])
                   for tags in (["O", "B-PER"], ["O", "B-LOC"]))  # fmt: skip
    with pytest.raises(SoraError, match="label 'B-LOC' in column 'tags' is none of the 2 classes"):
        _task(train).check(test)


# --- loss


def _bert() -> Any:
    return tiny_bert_for(
        "TokenClassification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def _llama() -> Any:
    config = tiny_llama().config
    config.num_labels = 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForTokenClassification(config).eval()


def _small() -> tuple[TokenClassification, Dataset]:
    rows = [{"tokens": r["tokens"], "tags": [t[0] if t == "O" else t[:2] + "X" for t in r["tags"]]}
            for r in tagged_rows(11)]  # fmt: skip
    data = Dataset.from_list(rows)
    return _task(data), data


@pytest.mark.parametrize("make", [_bert, _llama])
def test_the_loss_is_the_models_own_over_all_words(make: Any) -> None:
    (task, rows), model, tokenizer = _small(), make(), tiny_tokenizer()
    encoded = task.encode(rows, tokenizer)
    collate = task.collator(tokenizer)
    with torch.no_grad():
        whole = float(model(**collate(list(encoded.dataset))).loss)
        kept, items = [], 0
        for part in (range(4), range(4, 11)):
            batch = collate(list(encoded.dataset.select(part)))
            kept.append(task.outputs_to_keep(model(**task.scored_inputs(batch)), batch).numpy())
            items += task.loss_items(batch)
    width = max(k.shape[1] for k in kept)
    padded = [
        np.pad(k, ((0, 0), (0, width - k.shape[1]), (0, 0)), constant_values=-100) for k in kept
    ]
    predictions = Predictions(np.concatenate(padded), None, encoded)
    assert task.loss(predictions) == pytest.approx(whole, rel=1e-5)
    assert items == sum(len(row["tokens"]) for row in rows)


def test_accumulated_gradients_are_those_of_whole_steps(tmp_path: Path) -> None:
    """22 rows in steps of 8: the last step has 6 rows, in fewer and uneven micro-batches."""
    rows = [{**row, "tags": [tag[:2].replace("B-", "B-X").replace("I-", "I-X") for tag in
                             row["tags"]]} for row in tagged_rows(22)]  # fmt: skip
    task = {"name": "token-classification"}
    check_accumulation(tmp_path, _bert(), tiny_tokenizer(), rows, steps=3, task=task)


# --- scores


def _kept(encoded: Encoded, tags: list[list[int]]) -> np.ndarray:
    """(rows, tokens, 2) as if a model had given the words these tags, each with loss 0.5."""
    kept = np.full((len(encoded.lengths), int(encoded.lengths.max()), 2), -100.0)
    for row, (own, places) in enumerate(zip(tags, encoded.dataset["places"], strict=True)):
        for token, place in enumerate(places):
            kept[row, token] = (own[place] if place != -100 else 3, 0.5)
    return kept


def test_scores_are_of_entities_and_of_words() -> None:
    """Worked out by hand: one is right only with its kind, its first and its last word."""
    rows = _rows(
        [
            {"tokens": ["the"] * 6, "tags": [1, 2, 0, 3, 0, 1]},  # PER 0-1, LOC 3, PER 5
            {"tokens": ["cat"] * 3, "tags": [3, 4, 4]},  # LOC 0-2
        ]
    )
    encoded = _task().encode(rows, tiny_tokenizer())
    given = [
        [1, 2, 0, 1, 0, 2],
        [3, 4, 0],
    ]  # PER 0-1 right, PER 3 wrong, PER 5 (I-: right), LOC 0-1
    predictions = Predictions(_kept(encoded, given), None, encoded)
    scores = _task().scores(predictions)
    assert scores == pytest.approx(
        {"precision": 2 / 4, "recall": 2 / 4, "f1": 0.5, "accuracy": 6 / 9, "loss": 0.5}
    )
    few = _task(metrics=["accuracy", "recall"]).metrics(predictions)
    assert few == pytest.approx({"accuracy": 6 / 9, "recall": 0.5})
    records = _task().readable(predictions)
    assert records[1] == {
        "tokens": ["cat"] * 3,
        "prediction": ["B-LOC", "I-LOC", "O"],
        "label": ["B-LOC", "I-LOC", "I-LOC"],
    }


def test_scores_are_those_of_the_library() -> None:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 40)
    wanted, given = ([rng.integers(0, 5, n).tolist() for n in sizes] for _ in range(2))
    rows = _rows([{"tokens": ["dog"] * len(tags), "tags": tags} for tags in wanted])
    encoded = _task().encode(rows, tiny_tokenizer())
    predictions = Predictions(_kept(encoded, given), None, encoded)
    scores = _task().metrics(predictions)
    assert_rows_add_up(_task(), predictions, 40)
    named = [[[NAMES[tag] for tag in tags] for tags in part] for part in (wanted, given)]
    own = {"f1": f1_score, "precision": precision_score, "recall": recall_score,
           "accuracy": accuracy_score}  # fmt: skip
    assert scores == pytest.approx({name: score(*named) for name, score in own.items()})


def test_words_that_are_cut_off_are_missed() -> None:
    task = _task(data={"max_length": 6})  # [CLS], 4 words, [SEP]
    rows = _rows([{"tokens": ["the"] * 7, "tags": [0, 1, 0, 0, 0, 1, 0]}])
    encoded = task.encode(rows, tiny_tokenizer())
    assert (encoded.truncated, encoded.longest) == (1, 9)
    assert encoded.lengths.tolist() == [6]
    scores = task.metrics(Predictions(_kept(encoded, [[0, 1, 0, 0]]), None, encoded))
    assert scores == pytest.approx(
        {"precision": 1, "recall": 1 / 2, "f1": 2 / 3, "accuracy": 4 / 7}
    )
    assert_rows_add_up(task, Predictions(_kept(encoded, [[0, 1, 0, 0]]), None, encoded), 1)
    (record,) = task.readable(Predictions(_kept(encoded, [[0, 1, 0, 0]]), None, encoded))
    assert record["prediction"] == ["O", "B-PER", "O", "O", None, None, None]
    train = task.encode(rows, tiny_tokenizer(), training=True)
    (told,) = task.remarks({"train": train, "validation": encoded})
    assert told.startswith("3 of 7 words of validation count as missed")


def test_rows_without_any_token_are_not_learned_but_scored() -> None:
    task, rows = _task(), _rows([{"tokens": [" "], "tags": [1]}, ROW])
    tokenizer = _pieces("wordpiece")
    assert len(task.encode(rows, tokenizer, training=True).lengths) == 1
    encoded = task.encode(rows, tokenizer)
    scores = task.metrics(Predictions(_kept(encoded, [[], ROW["tags"]]), None, encoded))
    assert scores["recall"] == pytest.approx(2 / 3)
    assert list(encoded.lacking.values()) == [1]
    assert list(task.encode(rows.select([0]), tokenizer, training=True).lacking.values()) == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_broken_logit_spoils_every_score(value: float) -> None:
    (task, rows), tokenizer = _small(), tiny_tokenizer()
    encoded = task.encode(rows, tokenizer)
    batch = task.collator(tokenizer)(list(encoded.dataset))
    logits = torch.zeros(*batch["labels"].shape, 3)
    shortest = int(np.argmin(encoded.lengths))
    logits[shortest, -1] = value  # padding is no word
    fine = Predictions(task.outputs_to_keep({"logits": logits}, batch).numpy(), None, encoded)
    assert all(math.isfinite(score) for score in task.scores(fine).values())
    logits[2, 1, 2] = value
    broken = Predictions(task.outputs_to_keep({"logits": logits}, batch).numpy(), None, encoded)
    assert all(math.isnan(score) for score in task.scores(broken).values())
