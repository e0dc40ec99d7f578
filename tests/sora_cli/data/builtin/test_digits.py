"""Images of digits, and their captions, against scikit-learn's own table."""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.datasets import load_digits

from sora_cli.data.builtin.captions import PHRASES, load_captions
from sora_cli.data.builtin.digits import DIGIT_NAMES, digit_arrays, load_digit_images


def test_every_image_of_scikit_learn_is_there_once_with_its_digit() -> None:
    bunch = load_digits()
    known = {image.tobytes(): d for image, d in zip(bunch.images, bunch.target, strict=True)}
    rows = [row for part in load_digit_images().values() for row in part]
    assert len(rows) == len(known)
    for row in rows:
        assert (row["image"].mode, row["image"].size) == ("L", (8, 8))
        grey = np.asarray(row["image"], dtype=float) * 16 / 255
        assert known.pop(np.rint(grey).tobytes()) == row["label"]
    assert not known


def test_values_reach_from_paper_to_ink() -> None:
    images, _ = digit_arrays()["train"]
    assert (images.min(), images.max(), images.dtype) == (0, 255, np.uint8)


def test_each_digit_has_its_share_of_both_splits() -> None:
    for rows in load_digit_images().values():
        counts = Counter(row["label"] for row in rows)
        assert set(counts) == set(range(10))
        assert all(0.09 <= count / len(rows) <= 0.11 for count in counts.values())


def test_captions_say_the_digit_and_the_stroke() -> None:
    digits, captions = load_digit_images(), load_captions()
    for split in ("train", "validation"):
        ink: dict[tuple[int, bool], list[int]] = {}
        for row, told in zip(digits[split], captions[split], strict=True):
            assert row["image"].tobytes() == told["image"].tobytes()
            assert DIGIT_NAMES[row["label"]] in told["text"].split()
            assert ("bold" in told["text"]) != ("thin" in told["text"])
            key = (row["label"], "bold" in told["text"])
            ink.setdefault(key, []).append(int(np.asarray(row["image"], dtype=int).sum()))
        for digit in range(10):
            assert max(ink[digit, False]) <= min(ink[digit, True])


def test_captions_vary_in_training_and_not_in_validation() -> None:
    captions = load_captions()
    texts = {split: Counter(row["text"] for row in rows) for split, rows in captions.items()}
    assert len(texts["train"]) == 20 * len(PHRASES)
    assert len(texts["validation"]) == 20
    assert set(texts["validation"]) < set(texts["train"])
    assert max(texts["validation"].values()) / len(captions["validation"]) < 0.06
    assert load_captions(seed=1)["train"] != captions["train"]
