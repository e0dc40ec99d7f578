"""Files as people have them when they start: Excel's exports, few rows, rare classes, Chinese."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.helpers_runs import WORDS

Table = list[list[str]]

_GOOD = ("schöne", "großartige", "hübsche", "günstige")
_BAD = ("üble", "öde", "ärgerliche", "überteuerte")
_THINGS = ("Tür", "Schüssel", "Bücherkiste", "Straßenkarte", "Lampe", "Mütze")


def german_rows(rows: int = 240, *, seed: int = 0) -> Table:
    """Return a header and reviews with umlauts, commas, a price with a decimal comma, a label."""
    draw = random.Random(seed)
    lines = [["Bewertung", "Preis", "Urteil"]]
    for number in range(rows):
        word = draw.choice(_GOOD if number % 2 else _BAD)
        price = f"{draw.randrange(1, 90)},{draw.randrange(100):02d}"
        text = f"Eine {word} {draw.choice(_THINGS)}, Nummer {number}, gekauft für mich"
        lines.append([text, price, "gut" if number % 2 else "schlecht"])
    return lines


def as_text(table: Table, separator: str = ",") -> str:
    """Return a table as Excel writes it: line ends of Windows, quotes only where needed."""
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\r\n").writerows(table)
    return out.getvalue()


def padded(table: Table, *, title: str | None = None, empty: int = 0) -> Table:
    """Return a table with a title and an empty row above it, and empty rows below it."""
    blank = [""] * len(table[0])
    above = [] if title is None else [[title, *blank[1:]], blank]
    return [*above, *table, *[blank] * empty]


EXCEL: dict[str, tuple[str, Callable[[Table], str], str]] = {
    "utf8": ("utf8.csv", lambda t: as_text(t, ";"), "utf-8-sig"),
    "ansi": ("ansi.csv", lambda t: as_text(t, ";"), "cp1252"),
    "unicode": ("unicode.tsv", lambda t: as_text(t, "\t"), "utf-16"),
    "sep": ("sep.csv", lambda t: "sep=;\r\n" + as_text(t, ";"), "cp1252"),
    "title": (
        "title.csv",
        lambda t: as_text(padded(t, title="Umfrage 2024, Köln", empty=9), ";"),
        "cp1252",
    ),
}
"""Excel's ways to save a table: name, text and encoding of the file."""


def write_excel(folder: Path, kind: str, table: Table) -> Path:
    """Write a table as Excel saves it; see `EXCEL`."""
    name, text, encoding = EXCEL[kind]
    path = folder / name
    path.write_bytes(text(table).encode(encoding))
    return path


def own_words(number: int) -> str:
    """Return three words that the tests' tokenizers know, other ones for each number."""
    return " ".join(WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(3))


def reviews(rows: int, share: float = 0.5, *, seed: int = 0) -> Table:
    """Return a header and English reviews; this share of them is good."""
    draw = random.Random(seed)
    good = [i < round(share * rows) for i in range(rows)]
    draw.shuffle(good)
    lines = [["review", "sentiment"]]
    for number, is_good in enumerate(good):
        word = draw.choice(("fine", "lovely", "great") if is_good else ("dull", "bad", "awful"))
        label = "pos" if is_good else "neg"
        text = f"a {word} film, seen {number} times with friends: {own_words(number)}"
        lines.append([text, label])
    return lines


def many_classes(classes: int = 29, rows: int = 420, *, seed: int = 0) -> Table:
    """Return a header and questions of many topics; the last topic has a single row."""
    draw = random.Random(seed)
    table = [["question", "topic"]]
    for number in range(rows - 1):
        topic = number % (classes - 1)
        text = f"question about thing{topic} {draw.random():.3f} {own_words(number)}"
        table.append([text, f"t{topic:02d}"])
    rare = ["a question about the one rare thing", f"t{classes - 1:02d}"]
    table.insert(1 + draw.randrange(rows), rare)
    return table


def chinese(rows: int = 200) -> Table:
    """Return a header and Chinese reviews with a label."""
    things = ("房间", "早餐", "位置", "服务", "价格", "前台")
    words = (("太差", "失望", "很脏"), ("很好", "满意", "干净"))
    table = [["text", "label"]]
    for number in range(rows):
        good = number % 2
        thing, word = things[number % 6], words[good][number // 2 % 3]
        text = f"酒店的{thing}{word},第{number}次入住,下次{'不还'[good]}会来"
        table.append([text, "差好"[good]])
    return table


def write_table(path: Path, table: Table) -> Path:
    """Write a table as UTF-8 CSV."""
    path.write_text(as_text(table), encoding="utf-8", newline="")
    return path


def preference_pairs(rows: int, equal: int = 0) -> list[dict[str, str]]:
    """Return pairs of answers; the first `equal` pairs have two equal answers."""
    return [
        {
            "prompt": f"Name a colour, number {i}.",
            "chosen": f"Blue is the colour {i}.",
            "rejected": f"Blue is the colour {i}." if i < equal else f"No, not {i}.",
        }
        for i in range(rows)
    ]


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
