"""The task family and the parts that columns play; what cannot be told is asked for by its key."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.data.columns import Column, Kind
from sora_cli.propose.matching import Match, match
from sora_cli.recipe import families
from sora_cli.recipe.task_options import TaskOptions
from tests.helpers_errors import refusal


def _match(text: str, /, task: str | None = None, tags: Any = (), **given: Any) -> Match:
    """Match columns given as "name:kind name:kind"."""
    pairs = [word.split(":") for word in text.split()]
    columns = {name: Column(name, _kind(kind), 3, 7.0) for name, kind in pairs}
    return match(columns, given, task, tags=tags)


def _kind(word: str) -> Kind:
    return word  # type: ignore[return-value]


CASES: dict[str, tuple[str, str, dict[str, str]]] = {
    "one text": ("id:identifier review:text stars:class at:date", "sequence-classification",
        {"review": "text", "stars": "label"}),
    "an unusual label": ("story:text team:class", "sequence-classification",
        {"story": "text", "team": "label"}),
    "the usual text of two": ("title:text body:text label:class", "sequence-classification",
        {"body": "text", "label": "label"}),
    "single words": ("name:word label:class", "sequence-classification",
        {"name": "text", "label": "label"}),
    "a pair": ("premise:text hypothesis:text label:class idx:identifier",
        "sequence-classification", {"premise": "text", "hypothesis": "text", "label": "label"}),
    "a numbered pair": ("text_a:text text_b:text same:class", "sequence-classification",
        {"text_a": "text", "text_b": "text", "same": "label"}),
    "BoolQ": ("question:text passage:text answer:class", "sequence-classification",
        {"question": "text", "passage": "text", "answer": "label"}),
    "regression": ("sentence1:text sentence2:text score:number", "sequence-regression",
        {"sentence1": "text", "sentence2": "text", "score": "label"}),
    "counts": ("text:text rating:whole", "sequence-regression",
        {"text": "text", "rating": "label"}),
    "tags": ("words:words ner_tags:numbers id:identifier", "token-classification",
        {"words": "tokens", "ner_tags": "tags"}),
    "tags of another name": ("tokens:words marks:words", "token-classification",
        {"tokens": "tokens", "marks": "tags"}),
    "chats": ("conversations:chat source:constant", "causal-lm", {"conversations": "messages"}),
    "preferences": ("prompt:text chosen:text rejected:word score:number", "preference",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    "UltraFeedback": ("prompt:text chosen:chat rejected:chat messages:chat", "preference",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    "texts that begin with the prompt": ("chosen:text rejected:text label:class", "preference",
        {"chosen": "chosen", "rejected": "rejected"}),
    "chats of another name": ("talk:chat", "causal-lm", {"talk": "messages"}),
    "instructions": ("instruction:text input:empty output:text", "causal-lm",
        {"instruction": "instruction", "input": "input", "output": "output"}),
    "questions and answers": ("question:text answer:text", "causal-lm",
        {"question": "instruction", "answer": "output"}),
    "plain text": ("story:text n:identifier", "causal-lm", {"story": "text"}),
    "SQuAD": ("id:identifier title:word context:text question:text answers:answers",
        "question-answering",
        {"question": "question", "context": "context", "answers": "answers"}),
    "COPA": ("premise:text choice1:text choice2:text question:class label:class idx:identifier",
        "multiple-choice", {"premise": "text", "question": "text", "choice1": "text",
        "choice2": "text", "label": "label"}),
    "ARC": ("id:identifier question:text choices:choices answerKey:class", "multiple-choice",
        {"question": "text", "choices": "text", "answerKey": "label"}),
    "summaries": ("id:identifier dialogue:text summary:text", "seq2seq",
        {"dialogue": "source", "summary": "target"}),
    "images": ("img:image label:class", "image-classification",
        {"img": "image", "label": "label"}),
    "search": ("id:identifier query:text positive:text negative_1:text negative_2:text",
        "embedding", {"query": "query", "positive": "positive", "negative_1": "negative",
        "negative_2": "negative"}),
    "few documents": ("query:text positive:class", "embedding",
        {"query": "query", "positive": "positive"}),
    "triplets": ("anchor:text positive:text negative:text", "embedding",
        {"anchor": "query", "positive": "positive", "negative": "negative"}),
    "lists of documents": ("id:identifier query:text documents:words labels:other", "reranking",
        {"query": "query", "documents": "documents", "labels": "labels"}),
    "documents of equal number": ("query:text document:text label:class",
        "sequence-classification", {"query": "text", "document": "text", "label": "label"}),
    "lists of right documents": ("query:text pos:words neg:words", "embedding",
        {"query": "query", "pos": "positive", "neg": "negative"}),
    "lists of wrong documents": ("anchor:text positive:text hard_negatives:words", "embedding",
        {"anchor": "query", "positive": "positive", "hard_negatives": "negative"}),
    "captions": ("image:image caption:text", "image-text",
        {"image": "image", "caption": "text"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_families(name: str) -> None:
    columns, task, taken = CASES[name]
    found = _match(columns)
    assert (found.task, found.taken) == (task, taken)


def test_texts_with_a_score_are_compared_if_the_task_is_given() -> None:
    found = _match("sentence1:text sentence2:text score:number", task="embedding")
    assert found.options == {"loss": "cosent"}
    assert found.taken == {"sentence1": "query", "sentence2": "positive", "score": "score"}
    found = _match("question:text answer:text", task="embedding")
    assert (found.options, found.data) == ({}, {})
    found = _match("q:text d:text bad:text", columns={"query": "q", "positive": "d"})
    assert (found.task, found.taken) == ("embedding", {"q": "query", "d": "positive"})
    found = _match(
        "query:text positive:text kind:class", label_column="kind", text_columns=["query"]
    )
    assert found.task == "sequence-classification"


def test_queries_with_several_documents_are_ranked() -> None:
    kinds = {"query": ("text", 10), "passage": ("text", 40), "label": ("class", 2)}
    columns = {n: Column(n, _kind(kind), many, 7.0) for n, (kind, many) in kinds.items()}
    assert match(columns, {}).task == "reranking"
    assert match(columns, {"label_column": "label"}).task == "sequence-classification"
    found = _match("question:text answer:text score:whole", task="reranking")
    assert found.taken == {"question": "query", "answer": "documents", "score": "labels"}


def test_columns_are_named_in_the_recipe_only_if_they_need_it() -> None:
    assert _match("messages:chat").data == {}
    assert _match("talk:chat").data == {"columns": {"messages": "talk"}}
    assert _match("text:text label:class").data == {
        "text_columns": ["text"], "label_column": "label",
    }  # fmt: skip


def test_columns_that_are_not_taken_say_what_they_hold() -> None:
    found = _match("title:text body:text label:class at:date")
    columns = {
        n: Column(n, k, 3, 7.0) for n, k in (("title", _kind("text")), ("at", _kind("date")))
    }
    assert found.not_taken(columns) == {
        "title": "texts of 7 words; data.text_columns can add it", "at": "dates or times",
    }  # fmt: skip


def test_tags_that_are_no_entities_have_no_f1() -> None:
    assert _match("tokens:words tags:words", tags=["B-PER", "O"]).options == {}
    assert _match("tokens:words tags:words", tags=["NOUN", "O"]).options == {
        "metrics": ["accuracy"]
    }
    assert _match("tokens:words tags:numbers").options == {"metrics": ["accuracy"]}


def test_what_is_given_decides() -> None:
    found = _match("a:text b:text x:class y:class", text_columns=["b"], label_column="x")
    assert found.taken == {"b": "text", "x": "label"}
    found = _match("a:text b:text x:class", text_columns=["{a}: {b}"])
    assert found.taken == {"a": "text", "b": "text", "x": "label"}
    assert _match("text:text stars:class", task="sequence-regression").task == "sequence-regression"
    found = _match("prompt:text completion:text label:class", task="sequence-classification",
                   text_columns=["completion"])  # fmt: skip
    assert found.taken == {"completion": "text", "label": "label"}
    found = _match("a:text good:text bad:text", columns={"chosen": "good", "rejected": "bad"})
    assert (found.task, found.taken) == ("preference", {"good": "chosen", "bad": "rejected"})
    assert _match("text:text stars:class", task="causal-lm").taken == {"text": "text"}
    found = _match("en:text de:text", columns={"instruction": "en", "output": "de"})
    assert (found.task, found.taken) == ("causal-lm", {"en": "instruction", "de": "output"})


def test_an_answer_with_one_of_two_labels_has_a_thumb() -> None:
    texts = {name: Column(name, "text", 20, 7.0) for name in ("prompt", "completion")}
    for kind, labels in (("class", 2), ("class", 3), ("number", 20)):
        columns = {**texts, "label": Column("label", _kind(kind), labels)}
        if labels == 2:
            found = match(columns, {})
            assert (found.task, found.data) == ("thumbs", {})
            assert found.taken == {name: name for name in columns}
        else:
            with pytest.raises(SoraError, match="2 columns could be the text"):
                match(columns, {})
    found = _match("question:text response:text thumb:word", task="thumbs")
    assert found.taken == {"question": "prompt", "response": "completion", "thumb": "label"}
    named = {"completion": "said", "label": "fine"}
    found = _match("prompt:text said:text fine:class", task="thumbs", columns=named)
    assert found.data["columns"] == {"prompt": "prompt", **named}


@pytest.mark.parametrize(("columns", "task"), [
("subject:text story:text team:class", None),
("text:text a:class b:class", None),
("one:chat two:chat", None),
("prompt:text completion:text label:class", None),
("question:text completion:text label:word", "preference"),
("en:text de:text", None),
("a:number b:whole c:date", None),
("a:number", "seq2seq"),
("text:text", "seq2sec"),
])  # fmt: skip
def test_what_cannot_be_told_names_the_key(
    columns: str,
    task: str | None,
) -> None:
    with refusal():
        _match(columns, task=task)


def test_a_label_that_is_not_there() -> None:
    with pytest.raises(SoraError, match="no column 'starz'"):
        _match("text:text stars:class", label_column="starz")


class _LinesOptions(TaskOptions):
    """A family that extends none of ours."""

    NAME: ClassVar[str] = "lines"
    COLUMNS: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": ("text", "line"), "mark": ("mark",),
    }  # fmt: skip
    METRICS: ClassVar[tuple[str, ...]] = ("loss",)


def test_a_family_that_stands_alone_takes_its_own_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families._ADDED, "lines", (None, _LinesOptions))
    found = _match("line:text mark:numbers other:text", task="lines")
    assert (found.task, found.why) == ("lines", "columns of task lines")
    assert found.taken == {"line": "text", "mark": "mark"}
    assert _match("line:text a:class", task="lines").taken == {"line": "text"}
    with refusal():
        _match("other:text a:class", task="lines")
