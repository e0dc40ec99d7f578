"""Kept tokens: found again in another process, never for anything else, never damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sora_cli.data.tokens import TRUNCATED, tokenise, unread_rows
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Encoded
from tests import warm
from tests.helpers_runs import glue_rows, pair_rows, tiny_tokenizer, write_glue, write_rows
from tests.shared_files import ROOT, glue_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tokens are kept."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sora-tokens"


def _texts(rows: int = 30, *, seed: int = 0) -> Dataset:
    return Dataset.from_list(pair_rows(rows, seed=seed)).select_columns(["sentence1", "sentence2"])


class Counting(PreTrainedTokenizerFast):  # type: ignore[misc]
    """Counts how often it is asked; passes for one of the library's."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        Counting.calls += 1
        return super().__call__(*args, **kwargs)


Counting.__module__ = "transformers.tests"


@pytest.fixture
def tokenizer() -> Counting:
    Counting.calls = 0
    plain = tiny_tokenizer()
    return Counting(
        tokenizer_object=plain.backend_tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def _made(tokenizer: Counting, texts: Dataset, *, max_length: int = 64) -> tuple[bool, Any]:
    """Whether the tokenizer was asked, and the rows."""
    before = Counting.calls
    rows = tokenise(texts, tokenizer, max_length=max_length).to_dict()
    return Counting.calls > before, rows


def test_second_time_the_tokenizer_is_not_asked(tokenizer: Counting, folder: Path) -> None:
    asked, first = _made(tokenizer, _texts())
    assert asked
    assert _made(tokenizer, _texts()) == (False, first)
    direct = [tokenizer(a, b)["input_ids"] for a, b in zip(*_texts().to_dict().values())]  # noqa: B905
    assert first["input_ids"] == direct
    assert first[TRUNCATED] == [False] * 30
    assert [file.suffix for file in folder.iterdir()] == [".arrow"]


def test_state_of_the_last_call_does_not_matter(tokenizer: Counting) -> None:
    _, first = _made(tokenizer, _texts())
    tokenizer(["the cat"] * 2, padding="max_length", truncation=True, max_length=3)
    assert _made(tokenizer, _texts()) == (False, first)
    tokenizer.name_or_path = "another/name"
    assert _made(tokenizer, _texts()) == (False, first)


def _with_word(tokenizer: Counting) -> None:
    tokenizer.add_tokens(["cat sees"])


def _with_ends(tokenizer: Counting) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=[("[SEP]", 3)]
    )


def _with_types(tokenizer: Counting) -> None:
    tokenizer.model_input_names = ["input_ids"]


def _cut_left(tokenizer: Counting) -> None:
    tokenizer.truncation_side = "left"


@pytest.mark.parametrize("change", [_with_word, _with_ends, _with_types, _cut_left])
def test_another_tokenizer_of_the_same_name(
    tokenizer: Counting, change: Callable[[Counting], None]
) -> None:
    _, first = _made(tokenizer, _texts(), max_length=8)
    change(tokenizer)
    asked, second = _made(tokenizer, _texts(), max_length=8)
    assert asked
    assert second != first


def _edited(texts: Dataset) -> Dataset:
    rows = texts.to_list()
    rows[17]["sentence2"] = f"not {rows[17]['sentence2']}"
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    "change",
    [
        _edited,
        lambda texts: texts.select([1, 0, *range(2, 30)]),
        lambda texts: texts.select(range(29)),
        lambda texts: texts.select_columns(["sentence2", "sentence1"]),
        lambda texts: texts.select_columns(["sentence1"]),
    ],
    ids=["text", "order", "rows", "columns", "column"],
)
def test_other_texts(tokenizer: Counting, change: Callable[[Dataset], Dataset]) -> None:
    _, first = _made(tokenizer, _texts())
    asked, second = _made(tokenizer, change(_texts()))
    assert asked
    assert second != first


def test_words_do_not_run_together(tokenizer: Counting) -> None:
    one = Dataset.from_dict({"a": ["cat dog", "x"], "b": ["bird", "y"]})
    two = Dataset.from_dict({"a": ["cat", "x"], "b": ["dog bird", "y"]})
    assert _made(tokenizer, one)[0]
    assert _made(tokenizer, two)[0]


def test_another_length(tokenizer: Counting) -> None:
    _, whole = _made(tokenizer, _texts())
    asked, cut = _made(tokenizer, _texts(), max_length=7)
    assert asked
    assert max(map(len, cut["input_ids"])) == 7
    assert cut[TRUNCATED] == [len(ids) > 7 for ids in whole["input_ids"]]
    assert True in cut[TRUNCATED]
    assert _made(tokenizer, _texts(), max_length=7) == (False, cut)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_half_written_file_is_made_again(tokenizer: Counting, folder: Path, part: float) -> None:
    _, first = _made(tokenizer, _texts(300))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    assert _made(tokenizer, _texts(300)) == (True, first)
    assert file.read_bytes() == content
    assert _made(tokenizer, _texts(300)) == (False, first)


def test_no_byte_of_a_file_may_change(tokenizer: Counting, folder: Path) -> None:
    _, first = _made(tokenizer, _texts())
    (file,) = folder.iterdir()
    content = file.read_bytes()
    for place in range(0, len(content), len(content) // 40):
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        assert _made(tokenizer, _texts()) == (True, first), place


def test_a_file_under_anothers_name_is_not_believed(tokenizer: Counting, folder: Path) -> None:
    _made(tokenizer, _texts())
    (one,) = folder.iterdir()
    _, expected = _made(tokenizer, _texts(seed=1))
    (two,) = set(folder.iterdir()) - {one}
    two.write_bytes(one.read_bytes())
    assert _made(tokenizer, _texts(seed=1)) == (True, expected)


def test_several_at_once(folder: Path) -> None:
    texts = _texts(200)
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda _: tokenise(texts, tiny_tokenizer(), max_length=9).to_dict(), range(8))
        )
    assert all(rows == made[0] for rows in made)
    assert [file.suffix for file in folder.iterdir()] == [".arrow"]


def test_nothing_is_left_of_what_was_interrupted(
    tokenizer: Counting, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sora_cli.data.tokens._seal", broken)
    with pytest.raises(KeyboardInterrupt):
        _made(tokenizer, _texts())
    assert list(folder.iterdir()) == []


def test_without_a_place_to_keep_anything(tokenizer: Counting, folder: Path) -> None:
    folder.parent.write_text("a file, not a directory")
    asked, first = _made(tokenizer, _texts())
    assert asked
    assert _made(tokenizer, _texts()) == (True, first)


def test_a_tokenizer_with_code_of_its_own_is_asked_each_time(tokenizer: Counting) -> None:
    class Own(Counting):
        pass

    Own.__module__ = "transformers_modules.somebody"
    own = Own(tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", cls_token="[CLS]")
    assert _made(own, _texts())[0]
    assert _made(own, _texts())[0]


def _encoded(rows: Dataset, **data: Any) -> Encoded:
    block = DataBlock(path="unused", **data)
    task = create_task(TaskBlock(name="sequence-classification"), block)
    task.bind(rows)
    return task.encode(rows, tiny_tokenizer())


def test_labels_are_those_of_the_rows_at_hand() -> None:
    rows = glue_rows("rte", 20)
    first = _encoded(rows, max_length=9)
    flipped = Dataset.from_list(
        [{**row, "label": 1 - row["label"]} for row in rows], features=rows.features
    )
    second = _encoded(flipped, max_length=9)
    assert second.dataset["labels"][:] == [1 - y for y in first.dataset["labels"][:]]
    assert second.dataset["input_ids"][:] == first.dataset["input_ids"][:]
    assert second.lengths.tolist() == first.lengths.tolist()
    assert second.truncated == first.truncated > 0


_PROGRAM = """
import json, sys
from transformers import AutoTokenizer
import sora_cli.data.tokens as tokens
from sora_cli.data.rows import load_rows
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
found = []
read = tokens._read
tokens._read = lambda file: (found.append(read(file)), found[-1])[1]
told = {}
for kind, block in json.loads(sys.argv[1]).items():
    found.clear()
    data = DataBlock(**block)
    task = create_task(TaskBlock(name="sequence-classification"), data)
    rows = load_rows(data)
    task.bind(rows.train)
    encoded = [task.encode(part, tokenizer) for part in (rows.train, rows.select)]
    told[kind] = [[kept is not None for kept in found],
                  [e.dataset.to_dict() for e in encoded], [e.lengths.tolist() for e in encoded]]
print(json.dumps(told))
"""


def _process(python: str, cache: Path, kinds: dict[str, dict[str, Any]], tokenizer: Path) -> Any:
    done = subprocess.run(
        [python, "-c", _PROGRAM, json.dumps(kinds), str(tokenizer)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(cache)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_another_process_finds_them(tmp_path: Path) -> None:
    """Whatever kind of data they come from: files, GLUE, a built-in set, a directory."""
    names = {part: tmp_path / f"{part}.jsonl" for part in ("train", "validation")}
    files = {part: write_rows(file, pair_rows(20)) for part, file in names.items()}
    write_rows(names["validation"], pair_rows(10, seed=2))
    folder = write_glue(tmp_path / "glue", rows=12, tasks=("rte",))
    kinds: dict[str, dict[str, Any]] = {
        "files": {"files": files, "text_columns": ["sentence1"]},
        "builtin": {"path": "builtin://entailment", "max_length": 12},
        "directory": {"path": str(folder), "name": "rte", "max_length": 6, "max_train_rows": 7},
    }
    with suppress(pytest.skip.Exception):  # without real data
        kinds["rte"] = {"path": str(glue_folder()), "name": "rte", "max_length": 20}
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    cache = tmp_path / "elsewhere"
    first = _process(warm.python(), cache, kinds, tmp_path / "tokenizer")
    second = _process(sys.executable, cache, kinds, tmp_path / "tokenizer")  # it hashes otherwise
    assert first.keys() == kinds.keys()
    for kind, (found, *made) in first.items():
        assert found == [False, False]
        assert second[kind] == [[True, True], *made]


@pytest.mark.parametrize(
    ("given", "limit", "unread"),
    [
        ({}, 2, [False, True, True]),  # [CLS] and [SEP], and nothing of the text
        ({}, 3, [False, False, False]),
        ({"pair": True}, 3, [False, False, True]),
        ({"prefix": "cat dog "}, 4, [False, False, True]),
        ({"prefix": "cat dog "}, 5, [False, False, False]),
    ],
)
def test_rows_cut_before_their_own_text(
    given: dict[str, Any], limit: int, unread: list[bool]
) -> None:
    found = unread_rows([2, 3, 9], tiny_tokenizer(), max_length=limit, **given)
    assert found.tolist() == unread


def test_columns_may_be_called_as_the_results_are() -> None:
    texts = Dataset.from_dict({"tokens": ["the cat", "a"], "input_ids": ["dog", "red"]})
    made = tokenise(texts, tiny_tokenizer(), max_length=8)
    assert made["tokens"][:] == [6, 5]
    assert [len(ids) for ids in made["input_ids"]] == [6, 5]
