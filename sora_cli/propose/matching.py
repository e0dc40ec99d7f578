"""Match columns with a task family, and each column with its part in the task.

Families are tried from the most specific (columns of images, pairs, chats or tagged words) to the
most general (texts and a label). If two matches are possible, an error names the key that decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed
from sora_cli.data.columns import Kind
from sora_cli.propose.roles import (
    READ,
    Columns,
    find_label,
    find_texts,
    of_kinds,
    one_of,
    usual_label,
)
from sora_cli.recipe.families import built_on, options_class
from sora_cli.recipe.thumbs_options import COMPLETION, LABEL
from sora_cli.tasks.choices import find_form
from sora_cli.tasks.pairs import SIDES, is_unpaired, unpaired
from sora_cli.tasks.texts import columns_in

Given = Mapping[str, Any]
"""The keys of the recipe's data block that the user gave; they are not searched for."""

_EVERY: tuple[Kind, ...] = get_args(Kind)
_TAG = re.compile(r"O|[BIES]-.+")  # entity tags of the schemes IOB, IOB2 and IOBES
_SOURCES = ("source", "document", "article", "dialogue", "text")
_TARGETS = ("target", "summary", "highlights")


@dataclass(frozen=True)
class Match:
    """A task family, and the columns that it uses.

    Attributes:
        why: reason for the choice, in a few words.
        data, options: keys of the recipe's blocks `data` and `task`.
        taken: column -> its part.
        left: column -> reason for not using it, if its kind is not reason enough.
    """

    task: str
    why: str
    taken: Mapping[str, str]
    data: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    def not_taken(self, columns: Columns) -> dict[str, str]:
        """Return each column that is not used, with the reason."""
        return {
            name: self.left.get(name, column.about)
            for name, column in columns.items()
            if name not in self.taken
        }


def match(
    columns: Columns, given: Given, task: str | None = None, *, tags: Sequence[str] = ()
) -> Match:
    """Return the task family that fits the columns.

    If none fits, or two fit equally well, an error names the key that decides.

    Args:
        given: keys of the data block that the user gave.
        task: the family, if the user gave it.
        tags: some values of a column of tags; they tell if the tags mark entities.
    """
    ours = None if task is None else built_on(task)  # raises for an unknown name
    for name, find in _FAMILIES:
        if task is None or name == ours or (name == _SEQUENCE and ours in _ONE_LABEL):
            result = find(columns, given, ours)
            if result is not None:
                return _with_metrics(result if task is None else replace(result, task=task), tags)
    if task is not None and ours is None:
        parts = _parts(task, columns, given, dict.fromkeys(options_class(task).COLUMNS, _EVERY))
        if parts:
            return _of_parts(task, f"columns of task {task}", parts)
    raise _nothing(columns, task)


def _image(columns: Columns, given: Given, task: str | None) -> Match | None:
    images = of_kinds(columns, "image")
    if not images or task == "image-text":
        return None
    label = given.get("label_column") or find_label(columns, images)
    if label is None:
        return None
    image = one_of(images, "image", "data.columns.image=COLUMN", columns)
    about = {**_named("image-classification", {"image": image}), "label_column": label}
    return Match(
        "image-classification", "a column of images", {image: "image", label: "label"}, about
    )


def _image_text(columns: Columns, given: Given, task: str | None) -> Match | None:
    del task
    images = of_kinds(columns, "image")
    named = _parts("image-text", columns, given, {"image": ("image",), "text": READ})
    if not images or "image" not in named:
        return None
    texts = [named["text"]] if "text" in named else of_kinds(columns, *READ)
    if not texts:
        return None
    text = one_of(texts, "caption", "data.columns.text=COLUMN", columns)
    parts = {"image": named["image"], "text": text}
    return _of_parts("image-text", "images with texts", parts)


def _pairs(columns: Columns, given: Given, task: str | None) -> Match | None:
    if task is None and given.get("label_column"):
        return None
    # of every kind: a fault is named with its row, by the task
    wanted = dict.fromkeys(("prompt", *SIDES, "tools"), _EVERY)
    parts = _parts("preference", columns, given, wanted)
    if not {*SIDES} <= set(parts):
        if task is not None and is_unpaired(columns):
            raise unpaired(columns)
        return None
    return _of_parts("preference", "a chosen and a rejected answer in each row", parts)


def _rewarded(columns: Columns, given: Given, task: str | None) -> Match | None:
    return None if task is None else _pairs(columns, given, task)  # else they are preferences


def _thumbs(columns: Columns, given: Given, task: str | None) -> Match | None:
    if task is None and (given.get("label_column") or not is_unpaired(columns)):
        return None
    wanted = dict.fromkeys(options_class("thumbs").COLUMNS, _EVERY)
    parts = _parts("thumbs", columns, given, wanted)
    if not {COMPLETION, LABEL} <= set(parts):
        return None
    # other labels have more values, and then these are texts with a class
    if task is None and not columns[parts[LABEL]].distinct <= 2:
        return None
    return _of_parts("thumbs", "an answer with a thumb, up or down, in each row", parts)


def _search(columns: Columns, given: Given, task: str | None) -> Match | None:
    if task is None and given.get("label_column"):
        return None
    # unless the task is given: `question` with `answer` are instructions, `premise` has classes
    documents = ("positive", "positives", "pos")
    names = None if task else {"query": ("query", "anchor"), "positive": documents}
    texts: tuple[Kind, ...] = (*READ, "class", "constant")  # a document may have many queries
    wanted: dict[str, tuple[Kind, ...]] = {"query": texts, "positive": (*texts, "words")}
    parts = _parts("embedding", columns, given, wanted, names=names)
    if len(parts) < 2:
        return None
    numbers: tuple[Kind, ...] = ("number", "whole", "class")
    scored = _parts("embedding", columns, given, {"score": numbers}) if task else {}
    wrong = options_class("embedding").COLUMNS["negative"]
    further = {n: "negative" for n in columns if not scored and re.sub(r"_?\d+$", "", n) in wrong}
    what = "pairs of texts with a score" if scored else "queries with their documents"
    found = _of_parts("embedding", what, {**parts, **scored})
    options = {"loss": "cosent"} if scored else {}
    return replace(found, options=options, taken={**found.taken, **further})


def _rankings(columns: Columns, given: Given, task: str | None) -> Match | None:
    texts: tuple[Kind, ...] = (*READ, "class", "constant")
    kinds: dict[str, tuple[Kind, ...]] = {
        "query": texts,
        "documents": (*READ, "words"),
        "labels": ("class", "whole", "number", "numbers", "other"),
    }
    # unless the task is given: `question` with `passage` has classes
    usual = options_class("reranking").COLUMNS
    names = None if task else {**usual, "query": ("query",), "documents": _RANKED}
    parts = _parts("reranking", columns, given, kinds, names=names)
    if len(parts) < 3:
        return None
    query, documents = (columns[parts[part]] for part in ("query", "documents"))
    lists = documents.kind == "words"
    # pairs of texts with a class, unless a query has several documents
    if task is None and not lists and documents.distinct <= query.distinct:
        return None
    if task is None and (given.get("label_column") or given.get("text_columns")):
        return None
    what = "lists of documents" if lists else "documents, of which a query has several,"
    return _of_parts("reranking", f"queries with {what} and their relevance", parts)


_RANKED = ("documents", "docs", "passages", "document", "doc", "passage")


def _chat(columns: Columns, given: Given, task: str | None) -> Match | None:
    del task
    parts = _parts("causal-lm", columns, given, {"messages": ("chat",), "tools": _EVERY})
    chats = [parts["messages"]] if "messages" in parts else of_kinds(columns, "chat")
    if not chats:
        return None
    chat = one_of(chats, "chat", "data.columns.messages=COLUMN", columns)
    why = "a column of chats" + (", with tools" if "tools" in parts else "")
    return _of_parts("causal-lm", why, {**parts, "messages": chat})


def _tags(columns: Columns, given: Given, task: str | None) -> Match | None:
    del task
    wanted: dict[str, tuple[Kind, ...]] = {"tokens": ("words",), "tags": ("words", "numbers")}
    parts = _parts("token-classification", columns, given, wanted)
    # one part is known and there are just two columns of lists: the other list is the other part
    lists = of_kinds(columns, "words", "numbers")
    if len(parts) == 1 and len(lists) == 2:
        (part, column), *_ = parts.items()
        parts[_OTHER[part]] = next(name for name in lists if name != column)
    if len(parts) < 2:
        return None
    return _of_parts("token-classification", "lists of words with one tag per word", parts)


_OTHER = {"tokens": "tags", "tags": "tokens"}


def _spans(columns: Columns, given: Given, task: str | None) -> Match | None:
    text: tuple[Kind, ...] = ("text", "word", "class")
    answers: tuple[Kind, ...] = ("answers", "words", *(text if task is not None else ()))
    wanted = {"question": text, "context": text, "answers": answers}
    parts = _parts("question-answering", columns, given, wanted)
    if len(parts) < 3:
        return None
    return _of_parts(
        "question-answering", "questions, contexts, and answers inside the contexts", parts
    )


def _choice(columns: Columns, given: Given, task: str | None) -> Match | None:
    if given.get("text_columns") is not None and task is None:
        return None
    text: tuple[Kind, ...] = ("text", "word", "class")
    lists: tuple[Kind, ...] = ("choices", "words")
    wanted = {"context": text, "question": text, "choices": lists}
    parts = _parts("multiple-choice", columns, given, wanted)
    try:
        form = find_form(list(columns), parts, given.get("text_columns"))
    except SoraError:
        if task is None:
            return None
        raise
    taken = dict.fromkeys(form.columns(list(columns)), "text")
    free = [name for name in columns if name not in taken]
    usual = (name for name in ("label", "answerKey", "answer") if name in free)
    label = given.get("label_column") or next(usual, None)
    if label is None or not (form.context or form.lead or task):
        return None
    about = {"label_column": label, **_named("multiple-choice", parts)}
    return Match("multiple-choice", "texts to choose from", {**taken, label: "label"}, about)


def _rewriting(columns: Columns, given: Given, task: str | None) -> Match | None:
    # unless the task is given, `input` with `output` are instructions, `question` with `answer` too
    names = {"source": _SOURCES, "target": _TARGETS} if task is None else None
    wanted = {"source": READ, "target": READ}
    parts = _parts("seq2seq", columns, given, wanted, names=names)
    if len(parts) < 2 or parts["source"] == parts["target"]:
        return None
    return _of_parts("seq2seq", "a text, and the text to write from it", parts)


def _instructions(columns: Columns, given: Given, task: str | None) -> Match | None:
    if task is None and (given.get("label_column") or usual_label(columns) is not None):
        return None
    wanted: dict[str, tuple[Kind, ...]] = {
        "instruction": ("text", "word"),
        "input": ("text", "word", "class", "constant", "empty"),
        "output": ("text", "word", "class"),
    }
    parts = _parts("causal-lm", columns, given, wanted)
    if not {"instruction", "output"} <= set(parts):
        return None
    return _of_parts("causal-lm", "instructions with their answers", parts)


def _labelled(columns: Columns, given: Given, task: str | None) -> Match | None:
    given_texts = given.get("text_columns")
    read = {name for entry in given_texts or () for name in columns_in(entry, list(columns))}
    if not (read or of_kinds(columns, *READ)):
        return None
    label = given.get("label_column") or find_label(columns, read)
    if label is None:
        return None
    if label not in columns:
        raise SoraError(
            f"data.label_column: no column '{label}'",
            where=f"there are: {listed(columns)}",
            key="data.label_column",
        )
    texts, left = (list(given_texts), {}) if given_texts else find_texts(columns, label)
    if not texts:
        return None
    kind = columns[label].kind
    numbers = kind in ("number", "whole", "identifier")
    name = task or ("sequence-regression" if numbers else "sequence-classification")
    what = "a number" if numbers else columns[label].about
    about = {"text_columns": texts, "label_column": label}
    taken = {name: "text" for entry in texts for name in columns_in(entry, list(columns))}
    of = "pairs of texts" if len(texts) == 2 else "texts"
    return Match(name, f"{of} and {what} in '{label}'", {**taken, label: "label"}, about, left=left)


def _plain_texts(columns: Columns, given: Given, task: str | None) -> Match | None:
    parts = _parts("causal-lm", columns, given, {"text": READ})
    texts = [parts["text"]] if parts else of_kinds(columns, "text")
    if not texts or (task is None and len(texts) > 1):
        return None
    text = one_of(texts, "text", "data.columns.text=COLUMN", columns)
    return _of_parts("causal-lm", "texts, and no column that could be a label", {"text": text})


_SEQUENCE = "sequence"
_ONE_LABEL = ("sequence-classification", "sequence-regression")
# The order matters: columns of a specific family, such as multiple choice, also fit a general one
# (texts and a label).
_FAMILIES: tuple[tuple[str, Callable[[Columns, Given, str | None], Match | None]], ...] = (
    ("image-classification", _image),
    ("image-text", _image_text),
    ("preference", _pairs),
    ("reward", _rewarded),
    ("thumbs", _thumbs),
    ("embedding", _search),
    ("reranking", _rankings),
    ("causal-lm", _chat),
    ("token-classification", _tags),
    ("question-answering", _spans),
    ("multiple-choice", _choice),
    ("seq2seq", _rewriting),
    ("causal-lm", _instructions),
    (_SEQUENCE, _labelled),
    ("causal-lm", _plain_texts),
)


def _parts(
    task: str,
    columns: Columns,
    given: Given,
    wanted: Mapping[str, Sequence[Kind]],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, str]:
    """Return the columns for these parts: the given columns, or else columns with usual names.

    Args:
        wanted: part -> kinds of column that fit.
        names: part -> usual names; None: the family's own.
    """
    usual, named = options_class(task).COLUMNS, given.get("columns") or {}
    parts: dict[str, str] = {}
    for part, kinds in wanted.items():
        own = usual[part] if names is None else names[part]
        fits = (n for n in own if n in columns and columns[n].kind in kinds)
        column = named.get(part) or next((n for n in fits if n not in parts.values()), None)
        if column is not None:
            parts[part] = column
    return parts


def _of_parts(task: str, why: str, parts: Mapping[str, str]) -> Match:
    taken = {column: part for part, column in parts.items()}
    return Match(task, why, taken, _named(task, parts))


def _named(task: str, parts: Mapping[str, str]) -> dict[str, Any]:
    """Return `data.columns`; empty if every column has its usual name."""
    usual = options_class(task).COLUMNS
    return {"columns": dict(parts)} if any(c not in usual[p] for p, c in parts.items()) else {}


def _with_metrics(result: Match, tags: Sequence[str]) -> Match:
    """Set accuracy as the metric of tags that mark no entities: the usual F1 counts entities."""
    if result.task != "token-classification" or (tags and all(map(_TAG.fullmatch, tags))):
        return result
    return Match(
        result.task, result.why, result.taken, result.data, {"metrics": ["accuracy"]}, result.left
    )


def _nothing(columns: Columns, task: str | None) -> SoraError:
    held = "; ".join(f"{name}: {column.about}" for name, column in list(columns.items())[:6])
    texts = of_kinds(columns, "text")
    if task is not None:
        parts = options_class(task).COLUMNS
        hint = "data.columns='{" + ", ".join(f"{part}: COLUMN" for part in parts) + "}'"
        hint = hint if parts else "data.text_columns=[COLUMN] data.label_column=COLUMN"
        return SoraError(f"the columns do not fit task {task}", where=held, hint=hint)
    if len(texts) > 1:
        return SoraError(
            f"{len(texts)} columns of texts, and none that could be a label: {listed(texts)}",
            where=held,
            hint="name the label or the task: data.label_column=COLUMN, or task.name=causal-lm "
            f"data.columns='{{instruction: {texts[0]}, output: {texts[1]}}}'",
        )
    return SoraError(
        "no task fits the columns: none of them holds texts, images or lists of words",
        where=held,
        hint="name them: task.name=sequence-classification data.text_columns=[COLUMN] "
        "data.label_column=COLUMN",
    )
