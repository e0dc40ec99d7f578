"""A small, seeded English entailment set (`builtin://entailment`), made by rules.

The task is GLUE RTE's: does the first sentence entail the second? It mixes negation, quantifiers,
monotonicity and swapped roles. Word statistics do not solve it, so features of a frozen encoder
do not either; the validation sentences combine their words in ways that training never does (see
`vocabulary.py`), so remembering sentences does not help.
"""

import random

from sora_cli.data.builtin.phenomena import PHENOMENA
from sora_cli.data.builtin.vocabulary import WordPicker

LABEL_NAMES = ("entailment", "not_entailment")
"""Label names in the order of the label numbers, as in GLUE RTE."""


def load_entailment(
    *, train_rows: int = 2400, validation_rows: int = 600, seed: int = 0
) -> dict[str, list[dict[str, object]]]:
    """Make the training and the validation rows.

    Args:
        train_rows: Number of training rows, even.
        validation_rows: Number of validation rows, even.
        seed: Seed of everything drawn; the same seed gives the same rows.

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
    seen: set[tuple[str, str]] = set()
    made: list[dict[str, object]] = []
    for index in range(rows):
        name, label = names[index // 2 % len(names)], index % 2
        premise, hypothesis = _new_pair(name, label, rng, seen, held_out=held_out)
        made.append(
            {
                "sentence1": premise,
                "sentence2": hypothesis,
                "label": label,
                "phenomenon": name,
            }
        )
    rng.shuffle(made)
    return made


def _new_pair(
    name: str, label: int, rng: random.Random, seen: set[tuple[str, str]], *, held_out: bool
) -> tuple[str, str]:
    """A pair that is not in `seen`, and add it there."""
    for _ in range(1000):
        pair = PHENOMENA[name](WordPicker(rng, held_out=held_out), label == 0)
        if pair not in seen:
            seen.add(pair)
            return pair
    raise ValueError(f"so many rows ask for more {name} pairs than there are; ask for fewer")
