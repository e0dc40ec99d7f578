"""`sora init`: data in, a recipe out that trains as it is; what is wrong is told in three lines."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sora_cli.app import run
from sora_cli.recipe.load import load_recipe
from tests.golden import told
from tests.helpers_chat import write_chat_base
from tests.helpers_families import preference_rows, thumb_rows
from tests.helpers_first_data import (
    many_classes,
    own_words,
    preference_pairs,
    reviews,
    write_lines,
    write_table,
)
from tests.helpers_images import corner_rows, pair_processor
from tests.helpers_models import tiny_bert, tiny_clip
from tests.helpers_runs import pair_rows, save_base, train, write_rows

Init = Callable[..., str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tiny_bert(num_labels=2), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def init(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Init:
    """Run `sora init` on a tiny model; what it prints, or its error."""
    monkeypatch.chdir(tmp_path)

    def run_it(*words: str, model: Path = base, code: int = 0) -> str:
        capsys.readouterr()
        assert run(["init", *words, "--model", str(model)]) == code
        shown = capsys.readouterr()
        return shown.out if code == 0 else shown.err

    return run_it


def _csv(rows: int = 40) -> str:
    lines = [
        f"{i + 1},2024-01-{1 + i % 28:02d},the cat sees the {'dog' if i % 2 else 'bird'} "
        f"{own_words(i)},"
        f"{'pos' if i % 2 else 'neg'}"
        for i in range(rows)
    ]
    return "\n".join(["id,date,review,sentiment", *lines, ""])


def test_a_table_becomes_a_recipe_that_trains(init: Init) -> None:
    Path("reviews.csv").write_text(_csv())
    told(init("reviews.csv", "training.epochs=1", "--preview", "1"))
    told(Path("reviews.yaml").read_text())
    recipe = load_recipe("reviews.yaml").recipe
    assert recipe.data.text_columns == ["review"]
    assert (recipe.data.max_length, recipe.training.epochs) == (16, 1)
    assert recipe.training.keep_best is False
    report = train("reviews.yaml")
    assert report.data.rows == {"train": 32, "select": 8, "validation": 8}


@pytest.mark.long
def test_the_same_rows_are_held_out_in_every_run(init: Init) -> None:
    Path("reviews.csv").write_text(_csv())
    first = init("reviews.csv")
    assert init("reviews.csv", "--force") == first
    assert init("reviews.csv", "--force", "data.held_out_seed=1") != first


def test_what_is_given_is_kept(init: Init) -> None:
    Path("r.csv").write_text(_csv())
    init("r.csv", "-o", "a.yaml", "data.max_length=12", "method.name=lora", "method.r=2",
         "training.seed=3")  # fmt: skip
    values = yaml.safe_load(Path("a.yaml").read_text())
    assert values["data"]["max_length"] == 12
    assert values["method"] == {"name": "lora", "r": 2}
    assert values["training"]["seed"] == 3
    assert "seed: 3 # given" in Path("a.yaml").read_text()


@pytest.mark.long
def test_files_beside_and_directories_of_splits(tmp_path: Path, init: Init) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    write_rows(folder / "train.jsonl", pair_rows(20))
    write_rows(folder / "validation.jsonl", pair_rows(6, seed=1))
    init("pairs/train.jsonl", "-o", "files.yaml")
    data = load_recipe("files.yaml").recipe.data
    assert data.files == {"train": ["pairs/train.jsonl"], "validation": ["pairs/validation.jsonl"]}
    assert data.held_out_rows is None
    init("pairs")
    data = load_recipe("pairs.yaml").recipe.data
    assert (data.path, data.text_columns) == ("pairs", ["sentence1", "sentence2"])
    assert (data.files, data.held_out_rows) == (None, None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", _csv().replace(",", ";")),
        ("marked.csv", "\ufeff" + _csv()),
        ("tabs.tsv", _csv().replace(",", "\t")),
    ],
)
def test_tables_as_other_programs_write_them(name: str, content: str, init: Init) -> None:
    Path(name).write_text(content)
    shown = init(name, "-o", "r.yaml")
    assert "taken       review (text), sentiment (label)" in shown
    assert "not taken   id (an identifier)" in shown


def test_an_existing_file_stays(init: Init) -> None:
    Path("reviews.csv").write_text(_csv())
    Path("reviews.yaml").write_text("mine")
    shown = init("reviews.csv", code=2)
    assert "reviews.yaml exists already" in shown
    assert "--force" in shown
    assert Path("reviews.yaml").read_text() == "mine"
    init("reviews.csv", "--force")
    assert Path("reviews.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("data.train=other", "there are no rows in split 'other'\n  splits: train\n"),
        ("seed=3", "seed is no key of a recipe\n  write block.key=value\n"),
        ("data.path=3", "data: path: Input should be a valid string\n"),
        ("data.files.validation=b.csv", "no data file 'b.csv' (split validation)\n"),
    ],
)
def test_a_wrong_value_leaves_no_recipe(value: str, said: str, init: Init) -> None:
    Path("reviews.csv").write_text(_csv())
    assert f"error: {said}" in init("reviews.csv", value, code=2)
    assert not Path("reviews.yaml").exists()


@pytest.mark.usefixtures("init")
def test_files_take_the_place_of_a_recipes_path() -> None:
    Path("a.csv").write_text(_csv())
    loaded = load_recipe("quickstart", ["data.files.train=a.csv", "data.held_out_rows=8"])
    assert (loaded.recipe.data.path, loaded.recipe.data.files) == ("", {"train": ["a.csv"]})
    assert loaded.notes == ("data.files (command line): dropped data.path",)
    both: list[Any] = ["data.files.train=a.csv", "data.path=b"]
    assert load_recipe("quickstart", both).recipe.data.path == "b"
    back = load_recipe("offline/own-instructions", ["data.path=b"])
    assert (back.recipe.data.path, back.recipe.data.files) == ("b", None)
    assert back.notes == ("data.path (command line): dropped data.files",)


def test_images_with_texts_are_shown_without_their_model(tmp_path: Path, init: Init) -> None:
    tiny_clip().save_pretrained(tmp_path / "clip")
    pair_processor().save_pretrained(tmp_path / "clip")
    corner_rows(40).remove_columns("label").to_parquet("corners.parquet")
    shown = init("corners.parquet", "--preview", "1", model=tmp_path / "clip")
    assert "image-text: images with texts" in shown
    assert "row 0\n  image: an image\n  text: 'the south east'" in shown
    assert load_recipe("corners.yaml").recipe.data.max_length == 8


def test_of_a_large_file_some_rows_are_looked_at(
    init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault among them is told with the line that it stands in."""
    for place in ("data.columns", "propose.lines"):
        monkeypatch.setattr(f"sora_cli.{place}.LOOKED_AT", 40)
    rows: list[dict[str, Any]] = [
        {"text": f"the cat sees the dog {i}", "label": "ab"[i % 2]} for i in range(200)
    ]
    write_rows(Path("rows.jsonl"), rows)
    looked = "rows        train 160, validation 40; at most 40 of each were looked at"
    assert looked in init("rows.jsonl")
    for row in rows[100:]:
        row["text"] = None
    write_rows(Path("rows.jsonl"), rows)
    line = int(init("rows.jsonl", "--force", code=2).split("rows.jsonl:")[1].split(",")[0])
    assert rows[line - 1]["text"] is None


def test_pairs_of_answers_become_a_recipe_that_trains(
    init: Init, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = preference_rows(20)
    rows[3]["rejected"] = rows[3]["chosen"]
    write_rows(tmp_path / "prefs.jsonl", rows)
    told(init("prefs.jsonl", model=write_chat_base(tmp_path / "chat")))
    recipe = load_recipe("prefs.yaml").recipe
    assert recipe.task.name == "preference"
    assert recipe.training.learning_rate == "auto"
    assert train("prefs.yaml", "training.epochs=1").data.rows["train"] == 16
    assert run(["train", "prefs.yaml", "--dry-run"]) == 0
    assert "\n    chosen   " in capsys.readouterr().out


@pytest.mark.parametrize("thumb", [bool, int, ("down", "up").__getitem__])
def test_single_answers_with_a_thumb_become_a_recipe_that_trains(
    init: Init, tmp_path: Path, thumb: Callable[[bool], Any]
) -> None:
    rows = [{**row, "label": thumb(row["label"])} for row in thumb_rows(20)]
    write_rows(tmp_path / "kto.jsonl", rows)
    written = init("kto.jsonl", model=write_chat_base(tmp_path / "chat"))
    if thumb is bool:
        told(written)
    recipe = load_recipe("kto.yaml").recipe
    assert recipe.task.name == "thumbs"
    if thumb is bool:
        assert train("kto.yaml", "training.epochs=1").data.rows["train"] == 16


def _proposed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, list[list[str]]]:
    """Return what `init` says beside the recipe, and the commands that it proposes."""
    capsys.readouterr()
    assert run(["init", *words]) == 0
    said = capsys.readouterr().err
    commands = said.partition("next:\n")[2].splitlines()
    return said, [shlex.split(command)[1:] for command in commands if "--dry-run" not in command]


FEW = ["training.max_steps=20", "training.batch_size=8"]


@pytest.mark.parametrize(
    ("table", "said", "proposed"),
    [
        (reviews(60), "48 rows, and 96 are needed: 32 held out", ["train"]),
        (reviews(240), "16 of these test", ["train", "auto"]),
        (many_classes(seed=2), "as no other row has their class: t28", ["train", "auto"]),
        (reviews(1200, 0.95), "always answering 'pos' is at most 0.0510 worse", ["train", "auto"]),
        (reviews(150, 0.95), "rarer classes have too few rows to promise more", ["train"]),
    ],
    ids=["few", "enough", "rare", "unbalanced", "few and unbalanced"],
)
def test_what_is_proposed_runs(
    table: list[list[str]], said: str, proposed: list[str], base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "rows.csv", table)
    text, commands = _proposed(capsys, "rows.csv", "--model", str(base), "training.epochs=3")
    assert said in text
    assert [command[0] for command in commands] == proposed
    for command in commands:
        assert run([*command, *FEW, "--no-verify"]) in (0, 3), capsys.readouterr().err
    if "matthews" in text:
        assert "--max-drop" in commands[-1]
        assert "task.metrics=[matthews_correlation,accuracy]" in commands[-1]


def test_too_few_pairs_are_trained_without_a_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "pairs.jsonl", preference_pairs(60, equal=3))
    chat = write_chat_base(tmp_path / "chat")
    text, commands = _proposed(capsys, "pairs.jsonl", "--model", str(chat))
    assert "48 rows, and 96 are needed" in text
    assert "400 rows or more without labels: --max-differ 1% --unlabelled FILE" in " ".join(
        text.split()
    )
    assert [command[0] for command in commands] == ["train"]
    assert run([*commands[0], *FEW, "--no-verify"]) == 0
