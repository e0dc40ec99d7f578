"""Tables of any columns: a task is told, or the key that decides is named; nothing else happens."""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from sora_cli.app import app
from sora_cli.core.errors import SoraError
from sora_cli.data.columns import read_columns
from sora_cli.propose.matching import match
from sora_cli.recipe.families import task_names
from sora_cli.recipe.load import load_recipe
from tests.fuzz.outcome import cases, outcome
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base

NAMES = st.sampled_from(
    ["id", "text", "label", "sentence1", "sentence2", "question", "answer", "choice1", "choice2",
     "tokens", "tags", "messages", "summary", "a b", "{x}", "stars", "é"]
)  # fmt: skip
WORDS = st.text("ab é,;\"'\n{}0", max_size=12)
CELLS: tuple[st.SearchStrategy[object], ...] = (
    WORDS, st.sampled_from(["yes", "no"]), st.integers(-2, 9), st.floats(-2, 2), st.booleans(),
    st.none(), st.lists(st.sampled_from("ab"), max_size=3), st.lists(st.integers(0, 2), max_size=3),
    st.just("the cat sees a dog"), st.dates(),
    st.fixed_dictionaries({"text": st.just("a"), "answer_start": st.just(0)}),
    st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": WORDS}), max_size=2),
)  # fmt: skip


@st.composite
def _columns(draw: st.DrawFn) -> dict[str, list[object]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    rows = draw(st.integers(1, 8))
    return {
        name: draw(st.lists(draw(st.sampled_from(CELLS)), min_size=rows, max_size=rows))
        for name in names
    }


@cases(60)
@given(_columns(), st.sampled_from([None, *task_names()]))
def test_columns_of_any_kind(values: dict[str, list[object]], task: str | None) -> None:
    columns = read_columns(Dataset.from_dict(values))
    assert list(columns) == list(values)
    found = None
    result = outcome(lambda: match(columns, {}, task))
    with suppress(SoraError):
        found = match(columns, {}, task)
    if found is None:
        assert len(result.err.splitlines()) > 1  # there is a hint, or what the columns hold
        return
    assert task in (None, found.task)
    assert set(found.taken) <= set(columns)
    assert set(found.taken) | set(found.not_taken(columns)) == set(columns)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tiny_bert(num_labels=2), tmp_path_factory.mktemp("base") / "base")


@pytest.mark.long
def test_files_of_any_table(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is a valid recipe; what cannot be is told in three lines."""
    monkeypatch.chdir(tmp_path)
    written = 0

    @cases(60)
    @given(_columns(), st.sampled_from(",;\t"), st.booleans())
    def check(values: dict[str, list[object]], separator: str, marked: bool) -> None:
        nonlocal written
        text = io.StringIO()
        writer = csv.writer(text, delimiter=separator)
        writer.writerow(values)
        writer.writerows(zip(*values.values(), strict=True))
        Path("t.csv").write_text(("\ufeff" if marked else "") + text.getvalue(), encoding="utf-8")
        Path("t.yaml").unlink(missing_ok=True)
        words = ["init", "t.csv", "--model", str(base)]
        result = outcome(lambda: app(words, prog_name="sora", standalone_mode=False))
        assert result.good == Path("t.yaml").exists()
        if result.good:
            written += 1
            load_recipe("t.yaml")

    check()
    assert written
