"""Texts and questions: answers stand where they are said to, and the question needs the text."""

from __future__ import annotations

from collections import Counter

import pytest

from sora_cli.data.builtin.passages import load_passages


@pytest.fixture(scope="module")
def splits():
    return load_passages()


@pytest.fixture(scope="module")
def rows(splits):
    return [row for part in splits.values() for row in part]


def test_answers_stand_where_they_are_said_to(rows):
    for row in rows:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert text
        assert row["context"][start : start + len(text)] == text
        # a whole word or more: not a part of a longer one
        assert not row["context"][start + len(text)].isalnum()
        assert start == 0 or row["context"][start - 1] == " "


def test_the_answer_is_in_a_sentence_about_who_is_asked_for(rows):
    for row in rows:
        asked, other = row["title"].split(" and ")
        if asked not in row["question"]:
            asked, other = other, asked
        before = row["context"][: row["answers"]["answer_start"][0]]
        sentence = row["context"][before.rfind(". ") + 1 :].partition(". ")[0]
        assert asked in sentence
        assert asked in row["question"]
        assert other not in sentence
        assert other in row["context"]


def test_texts_are_short_and_long(rows):
    words = [len(row["context"].split()) for row in rows]
    assert min(words) < 25
    assert sum(count > 100 for count in words) >= 50
    sentences = Counter(row["context"].count(". ") + 1 for row in rows)
    assert set(sentences) == set(range(2, 9))


def test_no_answer_is_common_and_no_place_either(splits):
    answers = Counter(row["answers"]["text"][0] for row in splits["validation"])
    assert max(answers.values()) / len(splits["validation"]) < 0.06
    first = sum(row["context"].find(row["answers"]["text"][0]) < 60 for row in splits["train"])
    assert 0.1 < first / len(splits["train"]) < 0.6


def test_ids_are_unique_and_the_seed_decides(rows):
    assert len({row["id"] for row in rows}) == len(rows)
    first, again, other = (
        load_passages(train_rows=20, validation_rows=10, seed=s) for s in (3, 3, 4)
    )
    assert first == again
    assert first != other
