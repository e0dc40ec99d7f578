"""Make pairs for preference tuning out of instructions: each answer against worse ones.

    python -m tools.pairs DIR -o OUT

DIR holds train.jsonl and validation.jsonl (instruction, input, output). A worse answer is made by
rule: the first half of the answer, the answer of another instruction, the answer's words in random
order. All pairs of an instruction lie in one file of OUT: train.jsonl, choice.jsonl (to choose
rates on) or validation.jsonl, which holds all usable rows of DIR's validation.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from sora_cli.core.console import emit

LONGEST = 560
"""Characters of instruction, input and answer: about 140 tokens of SmolLM2."""
TRAIN, CHOICE = 80, 25
"""Instructions of DIR's train.jsonl in OUT's train.jsonl and choice.jsonl; the others validate."""


def rows_of(file: Path) -> list[dict[str, str]]:
    """Return the rows of a file that are short enough."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if sum(map(len, row.values())) <= LONGEST]


def worse(answer: str, other: str, dice: random.Random) -> Iterator[tuple[str, str]]:
    """Return the worse answers, each with the name of its rule.

    Args:
        other: the answer of another instruction.
    """
    yield "another", other
    words = answer.split()
    if len(words) >= 4:
        yield "short", " ".join(words[: len(words) // 2])
        yield "shuffled", " ".join(dice.sample(words, len(words)))


def pairs(rows: list[dict[str, str]], dice: random.Random) -> list[dict[str, str]]:
    """Return the pairs of some instructions, in random order."""
    made = []
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        prompt = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        for rule, answer in worse(row["output"], other["output"], dice):
            pair = {"prompt": prompt, "chosen": row["output"], "rejected": answer, "rule": rule}
            made.append(pair)
    dice.shuffle(made)
    return made


def main() -> None:
    """Write the three files and print how many pairs each has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("dir", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    dice = random.Random(0)
    rows, kept = rows_of(given.dir / "train.jsonl"), rows_of(given.dir / "validation.jsonl")
    dice.shuffle(rows)
    parts = {
        "train": rows[:TRAIN],
        "choice": rows[TRAIN : TRAIN + CHOICE],
        "validation": rows[TRAIN + CHOICE :] + kept,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        made = pairs(part, dice)
        lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in made)
        (given.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        emit(f"{name}: {len(made)} pairs of {len(part)} instructions")


if __name__ == "__main__":
    main()
