"""Classes and their counts in few words."""

from __future__ import annotations

from sora_cli.run.class_counts import absent_remarks, class_lines


def test_few_classes_are_listed_and_many_are_summed_up() -> None:
    counts = {"train": {"b\n": 1200, "a": 0, "c": 3}, "dev": {"b\n": 7, "a": 2, "c": 0}}
    assert list(class_lines(counts)) == [
        "classes, in train / dev: 'b\\n' 1,200 / 7, 'a' 0 / 2, 'c' 3 / 0"
    ]
    assert list(absent_remarks(counts)) == [
        "classes without rows in train: 'a' (1 of 3): nothing can be learned about them",
        "classes without rows in dev: 'c' (1 of 3)",
    ]
    many = {part: {str(i): n + i for i in range(77)} for part, n in (("train", 0), ("select", 5))}
    assert list(class_lines(many)) == [
        "77 classes, rows of each: 0 to 76 in train, 5 to 81 in the selection rows"
    ]
    (told,) = absent_remarks({"train": {str(i): i % 2 for i in range(99)}})
    assert len(told) < 200
    assert list(class_lines({})) == []


def test_rows_of_one_class_only_have_another_remark() -> None:
    assert list(absent_remarks({"train": {"a": 3, "b": 0}})) == []
