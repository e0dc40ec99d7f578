"""Sentences with names: whole tags, names of two kinds, names that training never has."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from sora_cli.data.builtin import names
from sora_cli.data.builtin.entities import TAGS, load_entities


@pytest.fixture(scope="module")
def splits():
    return load_entities()


def spans(row):
    """The (name, kind) pairs of a sentence; fails where a tag continues nothing."""
    found = []
    for token, number in zip(row["tokens"], row["tags"], strict=True):
        place, _, kind = TAGS[number].partition("-")
        if place == "B":
            found.append(([token], kind))
        elif place == "I":
            assert found
            assert found[-1][1] == kind
            found[-1][0].append(token)
    return [(" ".join(words), kind) for words, kind in found]


def all_spans(rows):
    return [span for row in rows for span in spans(row)]


def test_tags_are_iob2(splits):
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    schemes = pytest.importorskip("seqeval.scheme")
    for rows in splits.values():
        for row in rows:
            tags = [TAGS[number] for number in row["tags"]]
            strict = schemes.Entities([tags], schemes.IOB2).entities[0]
            assert len(strict) == len(spans(row)) == len(seqeval.get_entities(tags)) >= 1


def test_every_kind_is_frequent(splits):
    for rows in splits.values():
        kinds = Counter(kind for _, kind in all_spans(rows))
        assert set(kinds) == {"PER", "LOC", "ORG"}
        assert min(kinds.values()) / kinds.total() > 0.15


def test_part_of_validations_names_is_new(splits):
    train, validation = ([name for name, _ in all_spans(rows)] for rows in splits.values())
    first = {name.split()[0] for name in train}
    new = [name for name in validation if name.split()[0] not in first]
    assert 0.2 < len(new) / len(validation) < 0.6
    assert not {name for name in new if name in names.AMBIGUOUS}


def test_names_alone_do_not_tell_the_kind(splits):
    kinds = defaultdict(set)
    for name, kind in all_spans(splits["train"]):
        kinds[name].add(kind)
    assert all(kinds[name] == set(known) for name, known in names.AMBIGUOUS.items())
    clear = {name for name, known in kinds.items() if len(known) > 1} - set(names.AMBIGUOUS)
    assert not clear


def test_sentences_begin_large_and_end_with_a_full_stop(splits):
    for row in [row for rows in splits.values() for row in rows]:
        assert row["tokens"][0][0].isupper()
        assert row["tokens"][-1] == "."
        assert "{" not in "".join(row["tokens"])


def test_the_seed_decides_everything():
    first, again, other = (
        load_entities(train_rows=20, validation_rows=10, seed=s) for s in (3, 3, 4)
    )
    assert first == again
    assert first != other
