"""Answers in contexts: windows, what is learned of them, and how they are scored."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from sora_cli.core.errors import SoraError
from sora_cli.data.places import RowError
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.question_answering import QuestionAnswering
from sora_cli.tasks.windows import best_span
from tests.helpers_errors import refusal
from tests.helpers_families import check_accumulation, question_rows
from tests.helpers_models import tiny_bert_for, tiny_llama
from tests.helpers_rows import assert_rows_add_up
from tests.helpers_runs import tiny_tokenizer

ROW = {
    "id": "7",
    "question": "who sees",
    "context": "the cat sees a dog",
    "answers": {"text": ["the cat"], "answer_start": [0]},
}


def _task(*, data: Any = None, rows: Any = None, **options: Any) -> QuestionAnswering:
    block = DataBlock(path="unused", **{"max_length": 16, **(data or {})})
    given = {"stride": 2, **options}
    task = create_task(TaskBlock(name="question-answering", **given), block)
    task.bind(Dataset.from_list(rows or [ROW]))
    assert isinstance(task, QuestionAnswering)
    return task


def _encoded(task: Any, rows: Any, tokenizer: Any = None, **options: Any) -> Encoded:
    encoded: Encoded = task.encode(
        Dataset.from_list(rows), tokenizer or tiny_tokenizer(), **options
    )
    return encoded


def _span_logits(encoded: Encoded, spans: dict[int, tuple[int, int, float]]) -> np.ndarray:
    """(windows, tokens, 2) where for some windows a first and a last token have half of a score."""
    logits = np.zeros((len(encoded.lengths), int(encoded.lengths.max()), 2), dtype=np.float32)
    for window, (start, end, score) in spans.items():
        logits[window, start, 0] = logits[window, end, 1] = score / 2
    return logits


# --- windows


def test_windows_have_the_whole_context_and_overlap_by_the_stride() -> None:
    row = question_rows(1, seed=3)[0]
    encoded = _encoded(_task(data={"max_length": 12}, stride=3), [row])
    windows = list(encoded.dataset)
    words = row["context"].split()
    parts = [row["context"][w["starts"][0] : w["ends"][-1]].split() for w in windows]
    assert len(parts) > 2
    assert parts[0] == words[:8]  # 12 tokens, less [CLS] question [SEP] ... [SEP]
    whole = list(parts[0])
    for before, part in pairwise(parts):
        assert before[-3:] == part[:3]
        whole += part[3:]
    assert whole == words
    assert encoded.truncated == 0
    assert all(length <= 12 for length in encoded.lengths)


def test_a_window_points_at_its_answer_or_at_its_first_token() -> None:
    tokenizer, rows = tiny_tokenizer(), question_rows(20, seed=1)
    encoded = _encoded(_task(data={"max_length": 12}, stride=3), rows)
    with_answer = set()
    for window in encoded.dataset:
        row = rows[window["example"]]
        answer = row["answers"]["text"][0]
        start, end = window["start_positions"], window["end_positions"]
        text = row["context"][window["starts"][0] : window["ends"][-1]]
        if start:
            tokens = tokenizer.convert_ids_to_tokens(window["input_ids"][start : end + 1])
            assert " ".join(tokens) == answer
            with_answer.add(window["example"])
        else:
            assert (start, end) == (0, 0)
            assert f"{row['question']} {answer}" not in text
    assert with_answer == set(range(20))


CORPUS = [
    "Zoë's café — \U0001f408 naïve cats — sold 12,500 machines (40 % more) in 1984.",
    "Who sold how many? The answer is: 12,500 machines!",
]


def _pieces(kind: str, *, clean: bool = False) -> PreTrainedTokenizerFast:
    """A small tokenizer of each kind that real models have, trained on two sentences."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "byte-level":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=90, special_tokens=special, show_progress=False
        )
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    if clean:
        made.normalizer = normalizers.BertNormalizer(clean_text=True, lowercase=False)
    made.train_from_iterator(CORPUS, trainer)
    if kind == "wordpiece":
        ids = [("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))]
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    side = "right" if kind == "wordpiece" else "left"
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side=side, **names)


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "metaspace"])
@pytest.mark.parametrize("answer", ["Zoë's café", "\U0001f408 naïve cats", "12,500", "1984."])
def test_tokens_lead_back_to_the_answers_characters(kind: str, answer: str) -> None:
    context = CORPUS[0]
    row = {"question": CORPUS[1], "context": context,
           "answers": {"text": [answer], "answer_start": [context.index(answer)]}}  # fmt: skip
    tokenizer = _pieces(kind)
    encoded = _encoded(_task(data={"max_length": 400}), [row], tokenizer)
    window = encoded.dataset[0]
    start, end = (window[f"{side}_positions"] - window["first"] for side in ("start", "end"))
    text = context[window["starts"][start] : window["ends"][end]]
    if kind == "wordpiece":
        assert text == answer
    else:
        assert answer in text  # a token may have the space before it, or the mark after it
        assert len(text) <= len(answer) + 2
    logits = np.zeros((1, len(window["input_ids"]), 2), dtype=np.float32)
    logits[0, window["start_positions"], 0] = logits[0, window["end_positions"], 1] = 5
    (record,) = _task(max_answer_length=60).readable(Predictions(logits, None, encoded))
    assert record["prediction"] == text.strip()


def test_decoders_read_the_question_first_and_are_padded_at_the_right() -> None:
    tokenizer = _pieces("byte-level")  # pads at the left, and puts no token between two texts
    rows = [{**ROW, "question": "Who?"}, ROW]
    task = _task(data={"max_length": 100})
    encoded = _encoded(task, rows, tokenizer)
    batch = task.collator(tokenizer)(list(encoded.dataset))
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        size = int(mask.sum())
        assert mask.tolist() == [1] * size + [0] * (len(mask) - size)
        assert tokenizer.decode(ids[:size]) == f"{row['question']}\n{row['context']}"


# --- answers


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["a dog", "dog"], "answer_start": [13, 15]},
        [{"text": "a dog", "answer_start": 13}],
        {"text": ["a dog"], "answer_start": [11]},  # told wrong: the nearest occurrence
        {"text": ["a cow", "a dog"], "answer_start": [2, 13]},
        {"text": ["a dog"], "answer_start": []},
        ["a cow", "a dog"],
        "a dog",
    ],
)
def test_answers_in_every_form(answers: Any) -> None:
    (window,) = _encoded(_task(), [{**ROW, "answers": answers}]).dataset
    positions = (window["start_positions"], window["end_positions"])
    assert positions == (7, 8)  # [CLS] who sees [SEP] the cat sees a dog [SEP]


def test_of_several_occurrences_the_told_one_counts() -> None:
    row = {**ROW, "context": "the cat sees the cat"}
    for start, token in ((0, 4), (13, 7)):
        answers = {"text": ["the cat"], "answer_start": [start]}
        (window,) = _encoded(_task(), [{**row, "answers": answers}]).dataset
        assert window["start_positions"] == token
    (window,) = _encoded(_task(), [{**row, "answers": ["the cat"]}]).dataset
    assert window["start_positions"] == 4


def test_answers_that_stand_nowhere_are_not_learned_but_scored() -> None:
    lost = {**ROW, "answers": {"text": ["a cow"], "answer_start": [0]}}
    rows, task = [ROW, lost, ROW], _task()
    train, scored = _encoded(task, rows, training=True), _encoded(task, rows)
    assert train.dataset["example"][:] == [0, 2]
    assert scored.dataset["example"][:] == [0, 1, 2]
    told = task.remarks({"train": train, "test": scored})
    assert told == [
        "1 of 3 rows of train are left out: none of their answers occurs in the context",
        "1 of 3 rows of test count as wrong: none of their answers occurs in the context",
    ]
    assert task.remarks({"train": _encoded(task, [ROW], training=True)}) == []
    with pytest.raises(SoraError, match="no answer occurs in its context"):
        task.check(Dataset.from_list(rows[1:2]))


@pytest.mark.parametrize(
    ("change", "message", "key"),
    [
        ({"answers": []}, "column 'answers' has no answer", "task.unanswerable"),
        ({"answers": None}, "which is not a list of answers", "data.columns.answers"),
        ({"answers": "", "context": "a"}, "has no answer", "task.unanswerable"),
        ({"context": " "}, "column 'context' has no text", "data.columns.context"),
        ({"question": None}, "column 'question' has no text", "data.columns.question"),
    ],
)
def test_a_row_that_does_not_fit_is_named(change: Any, message: str, key: str) -> None:
    first = {**ROW, "answers": "the cat" if change.get("answers") == "" else ["the cat"]}
    with pytest.raises(RowError, match=message) as caught:
        _task().check(Dataset.from_list([first, {**first, **change}]))
    assert caught.value.row == 1
    assert key in str(caught.value.hint)


def test_numbers_are_no_answers() -> None:
    with pytest.raises(
        SoraError, match=r"column 'answers' holds \[3\], which is not a list of answers"
    ):
        _encoded(_task(), [{**ROW, "answers": [3]}])


def test_a_context_without_tokens_is_named() -> None:
    rows = [ROW, {**ROW, "context": "\u200b", "answers": {"text": ["\u200b"], "answer_start": [0]}}]
    with pytest.raises(SoraError, match="makes no token of the context\nrow 1 "):
        _encoded(_task(), rows, _pieces("wordpiece", clean=True))


def test_a_question_that_leaves_no_room_is_refused_with_what_would_do() -> None:
    rows = [ROW, {**ROW, "question": "the cat sees a dog"}]
    with refusal():
        _encoded(_task(data={"max_length": 10}), rows)
    assert len(_encoded(_task(data={"max_length": 11}), rows).lengths) > 2


def test_columns_are_found_or_named() -> None:
    rows = [{"q": "who", "passage": "the cat", "answers": ["the cat"]}]
    with pytest.raises(SoraError, match="no column for 'question'"):
        _task(rows=rows)
    task = _task(rows=rows, data={"columns": {"question": "q"}})
    assert task.input_columns == ("q", "passage")
    assert task.label_column == "answers"


# --- loss


def _bert(**options: Any) -> Any:
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny_bert_for("QuestionAnswering", **plain, **options)


def _llama() -> Any:
    config = tiny_llama().config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForQuestionAnswering(config).eval()


@pytest.mark.parametrize("make", [_bert, _llama])
def test_the_loss_is_the_models_own_of_each_window_alone(make: Any) -> None:
    """In a batch a model's own loss counts padding as tokens; ours does not."""
    task, tokenizer, model = _task(), tiny_tokenizer(), make()
    encoded = _encoded(task, question_rows(9))
    collate = task.collator(tokenizer)
    with torch.no_grad():
        alone = [float(model(**collate([row])).loss) for row in encoded.dataset]
        batch = collate(list(encoded.dataset))
        assert len(set(encoded.lengths)) > 2
        padded = float(model(**batch).loss)
        assert padded != pytest.approx(np.mean(alone), rel=1e-3)
        task.adapt_model(model, tokenizer)
        loss, _ = task.batch_loss(model, batch)
        assert float(loss) == pytest.approx(np.mean(alone), rel=1e-5)
        kept = task.outputs_to_keep(model(**task.scored_inputs(batch)), batch)
    wider = np.pad(kept.numpy(), ((0, 0), (0, 3), (0, 0)), constant_values=-100)
    for logits in (kept.numpy(), wider):  # as beside a batch of longer rows
        whole = task.loss(Predictions(logits, None, encoded))
        assert whole == pytest.approx(np.mean(alone), rel=1e-5)
    assert task.loss_items(batch) == len(encoded.lengths)


def test_accumulated_gradients_are_those_of_whole_steps(tmp_path: Path) -> None:
    check_accumulation(
        tmp_path, _bert(), tiny_tokenizer(), question_rows(15), steps=4,
        task={"name": "question-answering", "stride": 4},
        data={"path": "unused", "max_length": 20},
    )  # fmt: skip


# --- scores


def test_the_best_span_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for tokens, longest in [(1, 5), (7, 1), (30, 4), (12, 40)]:
        starts, ends = rng.normal(size=(2, tokens))
        pairs = {
            (s, e): starts[s] + ends[e]
            for s in range(tokens)
            for e in range(s, min(s + longest, tokens))
        }
        expected = max(pairs, key=pairs.__getitem__)
        score, start, end = best_span(starts, ends, longest)
        assert (start, end) == expected
        assert score == pytest.approx(pairs[expected])


def _answered(wanted: Any, span: tuple[int, int], **options: Any) -> dict[str, float]:
    """Scores of a row whose answer is two tokens of `the cat sees a dog`, by place."""
    task = _task(**options)
    encoded = _encoded(task, [{**ROW, "answers": wanted}])
    first = encoded.dataset[0]["first"]
    logits = _span_logits(encoded, {0: (first + span[0], first + span[1], 8.0)})
    predictions = Predictions(logits, None, encoded)
    assert_rows_add_up(task, predictions, 1)
    return task.metrics(predictions)


@pytest.mark.parametrize(
    ("wanted", "f1", "exact"),
    [
        (["the cat sees"], 1.0, 1.0),
        (["cat sees"], 1.0, 1.0),  # articles do not count,
        (["The CAT, sees!"], 1.0, 1.0),  # nor do capitals and punctuation
        (["cat"], 2 / 3, 0.0),  # precision 1 / 2, recall 1
        (["cat cat sees a dog"], 2 * 1 * 0.5 / 1.5, 0.0),  # recall 2 / 4
        (["dog", "cat", "sees cat"], 1.0, 0.0),  # the best of several
        (["dog"], 0.0, 0.0),
    ],
)
def test_scores_are_squads(wanted: list[str], f1: float, exact: float) -> None:
    """Rajpurkar et al. 2016, evaluate-v1.1: worked out by hand for 'the cat sees'."""
    assert _answered(wanted, (0, 2)) == pytest.approx({"f1": f1, "exact_match": exact})
    assert _answered(wanted, (0, 2), metrics=["f1"]) == pytest.approx({"f1": f1})


def test_answers_are_no_longer_than_they_may_be_and_never_of_the_question() -> None:
    encoded = _encoded(_task(), [ROW])
    logits = _span_logits(encoded, {0: (1, 2, 50.0)})  # the question
    logits[0, 5, 0], logits[0, 8, 1], logits[0, 6, 1] = 4, 4, 3
    for longest, expected in ((4, "cat sees a dog"), (3, "cat sees")):
        (record,) = _task(max_answer_length=longest).readable(Predictions(logits, None, encoded))
        assert record["prediction"] == expected
    assert record["id"] == "7"
    assert record["label"] == ["the cat"]
    assert record["question"] == "who sees"


def test_the_best_of_all_windows_is_the_answer() -> None:
    row = question_rows(1, seed=3)[0]
    task = _task(data={"max_length": 12}, stride=3)
    encoded = _encoded(task, [ROW, row])
    words, size = row["context"].split(), len(encoded.lengths)
    logits = _span_logits(encoded, {1: (3, 3, 4.0), 2: (4, 5, 6.0), size - 1: (3, 3, 5.0)})
    records = task.readable(Predictions(logits, None, encoded))
    assert records[1]["prediction"] == " ".join(words[6:8])  # the second begins at the sixth word
    assert records[1]["score"] == pytest.approx(6.0)
    assert len(records) == 2


def test_no_answer_wins_where_every_window_says_so() -> None:
    row = {**question_rows(1, seed=3)[0], "answers": {"text": [], "answer_start": []}}
    task = _task(data={"max_length": 12}, stride=3, unanswerable=True)
    encoded = _encoded(task, [row])
    assert set(encoded.dataset["start_positions"][:]) == {0}
    assert task.remarks({"train": _encoded(task, [row], training=True)}) == []
    logits = _span_logits(encoded, {0: (4, 4, 3.0)})
    logits[:, 0] = 2.0  # 4 for no answer
    assert task.metrics(Predictions(logits, None, encoded)) == {"f1": 1.0, "exact_match": 1.0}
    logits[0, 0] = 1.0  # the window of the answer sees one
    assert task.metrics(Predictions(logits, None, encoded)) == {"f1": 0.0, "exact_match": 0.0}
    (record,) = task.readable(Predictions(logits, None, encoded))
    assert record["prediction"] == row["context"].split()[1]


def test_an_answer_must_be_given_where_there_always_is_one() -> None:
    encoded = _encoded(_task(), [ROW])
    logits = _span_logits(encoded, {0: (4, 5, 1.0)})
    logits[0, 0] = 50.0
    (record,) = _task().readable(Predictions(logits, None, encoded))
    assert record["prediction"] == "the cat"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_broken_logit_spoils_every_score(value: float) -> None:
    task = _task()
    encoded = _encoded(task, [ROW, {**ROW, "context": "the cat"}])
    logits = _span_logits(encoded, {})
    logits[1, int(encoded.lengths[1]) :] = value  # padding is no answer
    assert all(math.isfinite(v) for v in task.scores(Predictions(logits, None, encoded)).values())
    logits[1, 0, 0] = value
    assert all(math.isnan(v) for v in task.scores(Predictions(logits, None, encoded)).values())
