"""The hint that ends a message about an unknown name."""

from __future__ import annotations

import pytest

from methods.words import closest, did_you_mean


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("lroa", ["lora", "sora"], "lora"),
        ("acuracy", ["bleu", "token_accuracy"], "token_accuracy"),
        ("lr", ["epochs", "lr_scheduler"], "lr_scheduler"),
        ("fp8", ["fp32", "bf16"], None),  # another thing, no typing error
        (8, ["16"], None),
        ("x", [], None),
    ],
)
def test_the_closest_name(word: object, known: list[str], expected: str | None) -> None:
    assert closest(word, known) == expected


def test_a_hint_lists_all_names_when_none_is_near() -> None:
    assert did_you_mean("x", ["alpha", "beta"]) == "there are: alpha, beta"
    assert did_you_mean("alhpa", iter(["alpha", "beta"])) == "did you mean 'alpha'?"


def test_a_hint_may_name_what_it_does_not_list() -> None:
    assert did_you_mean("a.keyy", ["b"], also=["a.key"]) == "did you mean 'a.key'?"
    assert did_you_mean("x", ["b"], also=["a.key"]) == "there are: b"
