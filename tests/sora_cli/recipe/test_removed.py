"""Settings and flags that earlier versions had: typed, and in stored recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sora_cli.app import COMMANDS, build, run
from sora_cli.core import removed
from sora_cli.core.errors import DiscontinuedError
from sora_cli.core.removed import REMOVED, Removed
from sora_cli.recipe.changes import changes, check_continuable, completed, of_its_time
from sora_cli.recipe.load import load_recipe, load_stored
from sora_cli.recipe.recipe import Recipe
from sora_cli.train.checkpoint.resume import check_same

FLAGS = [entry for entry in REMOVED if entry.name.startswith("sora ")]
KEYS = [entry for entry in REMOVED if entry not in FLAGS]
USED = Removed("data.of_old", "leave it out")
VALUE = Removed("training.optimizer", "write training.optimizer=adamw", value="of-old")


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removed, "REMOVED", (USED, VALUE))


def stored(**more: Any) -> dict[str, Any]:
    values = load_recipe("quickstart").resolved()
    return values | {block: values[block] | keys for block, keys in more.items()}


def a_value(entry: Removed) -> Any:
    if entry.value is not None:
        return entry.value.replace("*/*", "me/flash@0123")
    return {False: "true", None: "first", "auto": "true"}[entry.unused[0]]


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: f"{entry.name}={entry.value}")
def test_typed_settings_name_the_way_out(
    entry: Removed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = f"{entry.name}={a_value(entry)}"
    what = entry.name if entry.value is None else word
    assert run(["train", "quickstart", word, "--dry-run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3] == f"error: there is no {what} any more"
    assert lines[-2:] == [f"  command line: {word}", f"  {entry.instead}"]
    file = tmp_path / "r.yaml"
    block, key = entry.name.split(".")
    file.write_text(f"extends: quickstart.yaml\n{block}:\n  {key}: {a_value(entry)}\n")
    recipes = Path(__file__).parents[3] / "recipes"
    file.write_text(file.read_text().replace("quickstart", f"{recipes}/quickstart"))
    assert run(["train", str(file), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert f"there is no {what} any more" in error
    assert "r.yaml:3" in error


@pytest.mark.parametrize("entry", FLAGS, ids=lambda entry: entry.name)
def test_typed_flags_name_the_way_out(entry: Removed, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, flag = entry.name.split()
    assert run([command, flag]) == 2
    lines = [
        f"error: there is no {entry.name} any more",
        f"  {entry.instead}",
        f"  try: sora {command} --help",
    ]
    assert capsys.readouterr().err.splitlines()[-3:] == lines


def test_nothing_in_the_table_exists() -> None:
    for entry in FLAGS:
        _, command, flag = entry.name.split()
        assert command in COMMANDS
        assert flag not in {name for option in build(command).params for name in option.opts}
    for entry in KEYS:
        block, key = entry.name.split(".")
        fields = Recipe.model_fields
        assert block in fields
        model = load_recipe("quickstart", ["auto.max_drop=1pt"]).resolved()
        assert (key in model[block]) == (entry.value is not None)


@pytest.mark.usefixtures("old")
def test_a_stored_recipe_with_the_default_is_as_if_it_had_no_such_key() -> None:
    before = stored(data={"of_old": None})
    assert of_its_time(before) == of_its_time(stored())
    assert changes(before, stored()) == []
    check_continuable(before, "the run in 'x'")
    assert load_stored(before, Path("report.json"), "x").resolved() == stored()


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize(
    ("block", "key", "value", "now"),
    [("data", "of_old", "first", None), ("training", "optimizer", "of-old", "adamw")],
)
def test_a_stored_recipe_that_used_it_says_so(
    block: str, key: str, value: str, now: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored(**{block: {key: value}})
    file = tmp_path / "report.json"
    for _ in range(2):
        assert load_stored(before, file, "x").resolved() == stored()
    note = f"note: {file}: {block}.{key} was '{value}', and this version has no such setting"
    assert capsys.readouterr().err.splitlines() == [note]
    assert completed(before)[block][key] == value
    assert changes(before, stored()) == [(f"{block}.{key}", value, now)]
    with pytest.raises(
        DiscontinuedError, match=f"^the run in 'x' can be neither .*'{value}'"
    ) as left:
        check_same(before, stored(), "x", force=False)  # type: ignore[arg-type]
    assert left.value.exit_code == 3
    assert len(left.value.lines()) == 1


def test_a_kernel_of_the_hub_is_dropped_from_a_stored_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored(model={"attention": "me/flash@0123", "trust_kernel": True})
    assert load_stored(before, tmp_path / "report.json", "x").recipe.model.attention is None
    said = capsys.readouterr().err
    assert "model.attention was 'me/flash@0123', and this version has no such setting" in said
    assert "model.trust_kernel was true" in said
