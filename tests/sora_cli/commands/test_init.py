"""`sora init`: data in, a recipe out that trains as it is; what is wrong is told in three lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sora_cli.app import run
from sora_cli.recipe.load import load_recipe
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
        f"{i + 1},2024-01-{1 + i % 28:02d},the cat sees the {'dog' if i % 2 else 'bird'},"
        f"{'pos' if i % 2 else 'neg'}"
        for i in range(rows)
    ]
    return "\n".join(["id,date,review,sentiment", *lines, ""])


def test_a_table_becomes_a_recipe_that_trains(init: Init) -> None:
    Path("reviews.csv").write_text(_csv())
    shown = init("reviews.csv", "training.epochs=1", "--preview", "1")
    assert "taken       review (text), sentiment (label)" in shown
    assert "not taken   id (an identifier), date (dates or times)" in shown
    assert "rows        train 32, validation 8" in shown
    assert "classes, in train / validation: 'neg' 1" in shown
    assert shown.count("\nrow ") == 1
    assert "[CLS] the cat sees the" in shown
    text = Path("reviews.yaml").read_text()
    assert "held_out_rows: 8 # of 40 rows: one in five" in text
    recipe = load_recipe("reviews.yaml").recipe
    assert recipe.data.text_columns == ["review"]
    assert (recipe.data.max_length, recipe.training.epochs) == (8, 1)
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


LETTERS = "text,label\n" + "".join(f"the cat sees {i},{i % 2}\n" for i in range(20))
BAD: dict[str, tuple[str, str | None, tuple[str, ...], str, str]] = {
    # file, content, further words, what is said, and what to do
    "empty": ("a.csv", "", (), "holds no rows", ""),
    "a header alone": ("a.csv", "text,label\n", (), "no rows", ""),
    "one row": ("a.csv", "text,label\nthe cat sees a dog,1\n", (), "1 row is too little", ""),
    "no text": ("a.csv", "a,b,c\n1.5,2,3\n2.5,3,4\n3.5,5,6\n", (), "no task can be told",
        "data.text_columns=[COLUMN]"),
    "two texts": ("a.csv", LETTERS.replace("text,", "story,").replace("\n", ",the dog is red\n")
        .replace("label,the dog is red", "label,plot")
        .replace("red\nthe cat sees 3,1,the dog is red", "red\nthe cat sees 3,1,a dog is blue"),
        (), "2 columns could be the text: story, plot", "data.text_columns=[plot]"),
    "no file": ("a.csv", None, (), "no file or directory 'a.csv'", ""),
    "a recipe": ("a.yaml", "model:\n", (), "'a.yaml' is a recipe", "sora train a.yaml"),
    "no table": ("a.xlsx", "x", (), "no file of rows", "csv, tsv, json"),
    "no such key": ("a.csv", LETTERS, ("data.text_colums=[text]",), "unknown key 'text_colums'",
        "did you mean 'text_columns'?"),
    "no such family": ("a.csv", LETTERS, ("--task", "seq2sec"), "unknown task 'seq2sec'", ""),
    "another family": ("a.csv", LETTERS, ("--task", "token-classification"),
        "the columns are not those of token-classification", "tokens: COLUMN"),
    "a column that is not there": ("a.csv", LETTERS, ("data.label_column=stars",),
        "no column 'stars'", "there are: text, label"),
    "a broken line": ("a.csv", LETTERS.replace("sees 5,", "sees 5,a,"), (),
        "3 fields, where the header has 2", "a.csv:7"),
    "a row without text": ("a.csv", LETTERS.replace("the cat sees 5,", ","), (),
        "column 'text' has no text", "a.csv:7"),
    "an output of another name": ("a.csv", LETTERS, ("-o", "a.txt"), "ends in .yaml", "a.txt.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path, init: Init) -> None:
    file, content, words, says, hint = BAD[name]
    if content is not None:
        Path(file).write_text(content)
    before = sorted(tmp_path.iterdir())
    shown = init(file, *words, *(() if "-o" in words else ("-o", "new.yaml")), code=2)
    error = shown[shown.index("error: ") :].splitlines()
    assert says in error[0]
    assert hint in " ".join(error)
    assert len([line for line in error if line.strip()]) <= 3
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("init")
@pytest.mark.parametrize(
    ("source", "model", "hint"),
    [("reviews.csv", "nobody/none", "a model on this disk: --model DIR"),
     ("nobody/none", "nobody/none", "data on this disk: sora init FILE_OR_DIRECTORY")],
)  # fmt: skip
def test_what_the_hub_does_not_give(
    source: str, model: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("reviews.csv").write_text(_csv())
    assert run(["init", source, "--model", model, "-o", "r.yaml"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert "nobody/none" in error[-3]
    assert error[-1].strip() == hint
    assert not Path("r.yaml").exists()


@pytest.mark.usefixtures("init")
def test_train_points_from_data_to_init(capsys: pytest.CaptureFixture[str]) -> None:
    Path("reviews.csv").write_text(_csv())
    Path("rows").mkdir()
    Path("rows/train.csv").write_text(_csv())
    for source in ("reviews.csv", "rows"):
        assert run(["train", source]) == 2
        assert f"sora init {source}" in capsys.readouterr().err


@pytest.mark.usefixtures("init")
def test_files_take_the_place_of_a_recipes_path(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text(_csv())
    loaded = load_recipe("quickstart", ["data.files.train=a.csv", "data.held_out_rows=8"])
    assert (loaded.recipe.data.path, loaded.recipe.data.files) == ("", {"train": ["a.csv"]})
    assert loaded.notes == ("data.files (command line): dropped data.path",)
    both: list[Any] = ["data.files.train=a.csv", "data.path=b"]
    assert load_recipe("quickstart", both).recipe.data.path == "b"
    back = load_recipe("offline/own-instructions", ["data.path=b"])
    assert (back.recipe.data.path, back.recipe.data.files) == ("b", None)
    assert back.notes == ("data.path (command line): dropped data.files",)
    assert run(["train", "quickstart", "data.files.train=a.csv"]) == 2
    assert "data.held_out_rows=8 takes them from the training rows" in capsys.readouterr().err


def test_images_with_texts_are_shown_without_their_model(tmp_path: Path, init: Init) -> None:
    tiny_clip().save_pretrained(tmp_path / "clip")
    pair_processor().save_pretrained(tmp_path / "clip")
    corner_rows(40).remove_columns("label").to_parquet("corners.parquet")
    shown = init("corners.parquet", "--preview", "1", model=tmp_path / "clip")
    assert "image-text: images with texts" in shown
    assert "row 0\n  image: an image\n  text: 'the north west'" in shown
    assert load_recipe("corners.yaml").recipe.data.max_length == 8
