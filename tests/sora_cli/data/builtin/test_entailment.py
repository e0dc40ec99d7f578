"""The built-in entailment set: balanced, seeded, and honest about what validation has not seen."""

import itertools
from collections import Counter

import pytest

from sora_cli.data.builtin.entailment import LABEL_NAMES, load_entailment
from sora_cli.data.builtin.phenomena import PHENOMENA
from sora_cli.data.builtin.vocabulary import KINDS, PEOPLE, plural

FUNCTION_WORDS = {
    *("the", "is", "are", "was", "not", "by", "and", "or", "all", "every", "most", "nearly"),
    *("some", "at", "least", "one", "no", "none", "of"),
}
SINGULAR = {plural(noun): noun for noun in itertools.chain(PEOPLE, KINDS, *KINDS.values())}


@pytest.fixture(scope="module")
def splits():
    return load_entailment()


def content_words(sentence):
    words = (SINGULAR.get(word, word) for word in sentence.lower().rstrip(".").split())
    return {word for word in words if word not in FUNCTION_WORDS}


def sentences(rows):
    return [row[column] for row in rows for column in ("sentence1", "sentence2")]


def combinations(rows):
    return {
        pair
        for sentence in sentences(rows)
        for pair in itertools.combinations(sorted(content_words(sentence)), 2)
    }


def pairs(rows):
    return {(row["sentence1"], row["sentence2"]) for row in rows}


def test_validation_combines_words_in_ways_that_training_never_does(splits):
    train, validation = combinations(splits["train"]), combinations(splits["validation"])
    assert len(validation) > 100
    assert not train & validation
    assert all(len(content_words(s)) >= 2 for s in sentences(splits["validation"]))


def test_every_validation_word_occurs_in_training(splits):
    train, validation = (
        set().union(*(content_words(s) for s in sentences(splits[split])))
        for split in ("train", "validation")
    )
    assert validation <= train


def test_no_pair_occurs_twice(splits):
    train, validation = splits["train"], splits["validation"]
    assert len(pairs(train)) == len(train)
    assert len(pairs(validation)) == len(validation)
    assert not pairs(train) & pairs(validation)
    assert all(row["sentence1"] != row["sentence2"] for row in train + validation)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_labels_and_phenomena_are_balanced(splits, split):
    rows = splits[split]
    labels = Counter(row["label"] for row in rows)
    assert labels[0] == labels[1] == len(rows) // 2
    cells = Counter((row["phenomenon"], row["label"]) for row in rows)
    assert set(cells) == set(itertools.product(PHENOMENA, range(len(LABEL_NAMES))))
    assert max(cells.values()) - min(cells.values()) <= 1


@pytest.mark.parametrize("columns", [("sentence2",), ("sentence1", "sentence2")])
def test_a_bag_of_words_does_not_solve_it(splits, columns):
    feature_extraction = pytest.importorskip("sklearn.feature_extraction")
    linear_model = pytest.importorskip("sklearn.linear_model")
    vectorizer = feature_extraction.DictVectorizer()

    def features(rows):
        return [{(c, w): 1 for c in columns for w in row[c].lower().split()} for row in rows]

    train, validation = splits["train"], splits["validation"]
    model = linear_model.LogisticRegression(max_iter=1000)
    model.fit(vectorizer.fit_transform(features(train)), [row["label"] for row in train])
    predicted = model.predict(vectorizer.transform(features(validation)))
    right = sum(int(p == row["label"]) for p, row in zip(predicted, validation, strict=True))
    assert right / len(validation) <= 0.62


def test_the_seed_decides_everything():
    first, again, other = (
        load_entailment(train_rows=100, validation_rows=40, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert {split: len(rows) for split, rows in first.items()} == {"train": 100, "validation": 40}


def test_rows_have_the_documented_columns(splits):
    row = splits["train"][0]
    assert list(row) == ["sentence1", "sentence2", "label", "phenomenon"]
    assert [type(value) for value in row.values()] == [str, str, int, str]


def test_combinations_are_held_out_for_any_seed():
    rows = load_entailment(train_rows=600, validation_rows=200, seed=12)
    assert not combinations(rows["train"]) & combinations(rows["validation"])


def test_known_examples_have_the_right_label(splits):
    """Recompute the label of the swapped roles and of the negations from the sentences."""
    for row in splits["train"] + splits["validation"]:
        first, second = (row[c].rstrip(".").split() for c in ("sentence1", "sentence2"))
        if row["phenomenon"] == "roles":
            active, passive = sorted((first, second), key=len)
            entailed = active[1] == passive[-1]
        elif row["phenomenon"] == "negation":
            entailed = ("not" in first) != ("not" in second) and first[-1] != second[-1]
        else:
            continue
        assert entailed == (row["label"] == 0), row


@pytest.mark.parametrize("rows", [-2, 3])
def test_odd_or_negative_sizes_are_refused(rows):
    with pytest.raises(ValueError, match="even"):
        load_entailment(train_rows=rows)


def test_more_rows_than_there_are_is_refused():
    with pytest.raises(ValueError, match="ask for fewer"):
        load_entailment(train_rows=10, validation_rows=100_000)
