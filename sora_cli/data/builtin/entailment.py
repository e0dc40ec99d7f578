"""A small, seeded English entailment set (`builtin://entailment`), made by rules.

The task is GLUE RTE's: does the first sentence entail the second? It mixes negation, quantifiers,
monotonicity and swapped roles. Word statistics do not solve it, so features of a frozen encoder
do not either; the validation sentences combine their words in ways that training never does (see
`vocabulary.py`), so remembering sentences does not help.
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
    """Make the training and the validation rows.

    Args:
        train_rows, validation_rows: how many of either; even numbers.
        seed: of all that is drawn; the same seed gives the same rows.

    Returns:
        "train" and "validation": shuffled rows with the columns `sentence1`, `sentence2`, `label`
        (a number into `LABEL_NAMES`) and `phenomenon`. Half of the rows has either label, and the
        phenomena are as equally frequent as the number of rows allows. No pair occurs twice.

    Raises:
        ValueError: A number of rows is odd or negative, or larger than there are different pairs.
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
