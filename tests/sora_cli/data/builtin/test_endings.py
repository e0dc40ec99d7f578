"""What follows from a sentence: exactly one of four, found again by reading the sentence."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from sora_cli.data.builtin.endings import PHENOMENA, load_endings
from sora_cli.data.builtin.vocabulary import KINDS, OPPOSITES

OTHER = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}


@pytest.fixture(scope="module")
def splits():
    return load_endings()


def holds(phenomenon: str, context: str, choice: str) -> bool:
    """Whether a sentence follows from another."""
    if phenomenon == "roles":
        patient, verb, agent = re.fullmatch(r"The (\w+) was (\w+) by the (\w+)\.", choice).groups()
        return f"The {agent} {verb} the {patient}." in context
    if phenomenon == "kinds":
        verb, kind = re.fullmatch(r"The \w+ (\w+) an? (\w+)\.", choice).groups()
        thing = re.search(rf"{verb} an? (\w+)", context).group(1)
        wider = {"animal": KINDS["bird"], "weapon": KINDS["tool"], "tool": KINDS["weapon"]}
        return thing in KINDS[kind] or thing in wider.get(kind, ())
    person, denied, adjective = re.fullmatch(r"The (\w+) is (not )?(\w+)\.", choice).groups()
    told = re.fullmatch(rf"The {person} is (not )?(\w+)\.", context)
    if told.group(2) not in (adjective, OTHER[adjective]):
        return False
    return (told.group(2) == adjective) == (bool(told.group(1)) == bool(denied))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_choice_follows_and_the_label_says_which(splits, split):
    for row in splits[split]:
        follows = [holds(row["phenomenon"], row["context"], choice) for choice in row["choices"]]
        assert follows == [index == row["label"] for index in range(4)], row


@pytest.mark.parametrize("split", ["train", "validation"])
def test_labels_and_phenomena_are_balanced(splits, split):
    rows = splits[split]
    cells = Counter((row["phenomenon"], row["label"]) for row in rows)
    assert set(cells) == {(name, label) for name in PHENOMENA for label in range(4)}
    assert set(cells.values()) == {len(rows) // 12}


def test_the_choices_alone_do_not_tell(splits):
    """Words of a choice, and how often the row's other choices have them, fitted and tried."""
    feature_extraction = pytest.importorskip("sklearn.feature_extraction")
    linear_model = pytest.importorskip("sklearn.linear_model")
    vectorizer = feature_extraction.DictVectorizer()

    def features(rows):
        made = []
        for row in rows:
            counts = Counter(word for choice in row["choices"] for word in choice.split())
            for choice in row["choices"]:
                words = choice.split()
                shared = {f"shared {counts[word]}": 1 for word in words}
                made.append(shared | {f"has {word}": 1 for word in words})
        return made

    train, validation = splits["train"], splits["validation"]
    model = linear_model.LogisticRegression(max_iter=1000)
    right = [int(row["label"] == index) for row in train for index in range(4)]
    model.fit(vectorizer.fit_transform(features(train)), right)
    scores = model.decision_function(vectorizer.transform(features(validation))).reshape(-1, 4)
    labels = [row["label"] for row in validation]
    hits = sum(int(best == label) for best, label in zip(scores.argmax(1), labels, strict=True))
    assert hits / len(validation) < 0.4


def test_the_seed_decides_everything():
    first, again, other = (
        load_endings(train_rows=24, validation_rows=12, seed=s) for s in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert {split: len(rows) for split, rows in first.items()} == {"train": 24, "validation": 12}
