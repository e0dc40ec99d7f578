"""A small English entailment set, made by rules (`builtin://entailment`).

The task is that of GLUE RTE: does the first sentence entail the second? Rows use negation,
quantifiers, monotonicity and swapped roles. Word statistics do not solve it, and so features of a
frozen encoder do not, either. Memorising training sentences does not help: validation sentences
combine words in ways that never occur in training (see `vocabulary.py`).
"""

import random
from collections.abc import Hashable
from functools import partial

from sora_cli.data.builtin.draw import draw_new
from sora_cli.data.builtin.phenomena import PHENOMENA
from sora_cli.data.builtin.vocabulary import WordPicker

LABEL_NAMES = ("entailment", "not_entailment")
"""Label names in the order of the label numbers, as in GLUE RTE."""


def load_entailment(
    *, train_rows: int = 2400, validation_rows: int = 600, seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """Make the training and validation rows.

    Args:
        train_rows, validation_rows: number of rows of each split; even.
        seed: the same seed gives the same rows.

    Returns:
        "train" and "validation": shuffled rows with the columns `sentence1`, `sentence2`, `label`
        (an index into `LABEL_NAMES`) and `phenomenon`. Each label has half of the rows, and the
        phenomena are as equally frequent as the number of rows allows. No pair occurs twice.

    Raises:
        ValueError: a number of rows is odd, negative, or larger than the number of different pairs.
    """
    sizes = {"train": train_rows, "validation": validation_rows}
    return {
        split: _make_rows(rows, random.Random(f"{seed}/{split}"), held_out=split == "validation")
        for split, rows in sizes.items()
    }


def _make_rows(rows: int, rng: random.Random, *, held_out: bool) -> list[dict[str, object]]:
    if rows < 0 or rows % 2:
        raise ValueError(f"the number of rows must be even and not negative, not {rows}")
    names = tuple(PHENOMENA)
    seen: set[Hashable] = set()
    made: list[dict[str, object]] = []
    for index in range(rows):
        name, label = names[index // 2 % len(names)], index % 2
        first, second = draw_new(partial(_pair, name, label, rng, held_out=held_out), seen)
        made.append({"sentence1": first, "sentence2": second, "label": label, "phenomenon": name})
    rng.shuffle(made)
    return made


def _pair(name: str, label: int, rng: random.Random, *, held_out: bool) -> tuple[str, str]:
    return PHENOMENA[name](WordPicker(rng, held_out=held_out), label == 0)
