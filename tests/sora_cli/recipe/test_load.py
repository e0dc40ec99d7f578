"""Recipes from files: layers, overrides, origins, and errors a person can act on."""

import json
from pathlib import Path

import pytest

from methods.configs import LoraConfig, SoraConfig
from sora_cli.core.errors import SoraError
from sora_cli.recipe.load import load_recipe, load_stored

BASE = """\
model:
  path: some/model
task:
  name: sequence-classification
data:
  path: some/data
method:
  name: sora
  r_max: 4
  threshold: 1e-3
  alpha: 4
training:
  learning_rate: 3e-4
  evaluate: no
"""


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(text=BASE, *overrides, name="r.yaml"):
    Path(name).write_text(text, encoding="utf-8")
    return load_recipe(name, overrides)


def fails(text=BASE, *overrides, name="r.yaml"):
    with pytest.raises(SoraError) as caught:
        load(text, *overrides, name=name)
    lines = caught.value.lines()
    assert 1 <= len(lines) <= 3
    for jargon in ("pydantic", "http", "validation error", "Input should", "type=", "union"):
        assert jargon not in "\n".join(lines)
    return caught.value


def test_a_file_becomes_a_typed_recipe():
    loaded = load()
    assert loaded.recipe.training.learning_rate == 3e-4
    assert loaded.recipe.training.evaluate == "no"
    assert loaded.method_config == SoraConfig(r_max=4, threshold=1e-3, alpha=4)
    assert (loaded.name, loaded.path, loaded.notes) == ("r", Path("r.yaml"), ())
    assert loaded.output_dir == Path("runs/r-sora-s0")


def test_origins_name_file_line_command_line_and_default():
    loaded = load(BASE, "training.epochs=2", "method.r_max=6")
    assert str(loaded.origins["method", "threshold"]) == "r.yaml:10"
    assert str(loaded.origins["training", "epochs"]) == "command line"
    assert str(loaded.origins["method", "r_max"]) == "command line"
    assert str(loaded.origin("training", "seed")) == "default"
    assert {key: str(origin) for key, _, origin in loaded.values()}["model.path"] == "r.yaml:2"


def test_resolved_has_every_default_and_goes_into_json():
    resolved = load().resolved()
    assert resolved["method"]["prox"] == "paper"
    assert resolved["training"]["adam_betas"] == [0.9, 0.999]
    assert json.loads(json.dumps(resolved)) == resolved


@pytest.mark.parametrize(
    ("override", "block", "key", "value"),
    [
        ("training.epochs=3", "training", "epochs", 3.0),
        ("training.learning_rate=3e-4", "training", "learning_rate", 3e-4),
        ("data.validation=[a,b]", "data", "validation", ["a", "b"]),
        ("data.validation=a", "data", "validation", ["a"]),
        ("data.name=null", "data", "name", None),
        ("data.path=a=b", "data", "path", "a=b"),
        ("data.files={train: a.csv}", "data", "files", {"train": ["a.csv"]}),
        ("data.files.train=a.csv", "data", "files", {"train": ["a.csv"]}),
        ("training.train_head=false", "training", "train_head", False),
        ("training.evaluate=50", "training", "evaluate", 50),
        ("training={epochs: 3, seed: 2}", "training", "seed", 2),
    ],
)
def test_overrides_are_typed_as_in_a_file(override, block, key, value):
    assert load(BASE, override).resolved()[block][key] == value


def test_the_last_of_two_overrides_wins():
    assert load(BASE, "training.seed=1", "training.seed=2").recipe.training.seed == 2


def test_empty_blocks_are_allowed():
    assert load(BASE + "output:\n").recipe.output.dir is None


def test_a_block_that_may_be_left_out_is_taken_away():
    with_auto = BASE + "auto: {max_drop: 1pt, sizes: 3}\n"
    write(base=with_auto)
    assert load(with_auto).recipe.auto.sizes == 3
    assert load(with_auto, "auto=null").recipe.auto is None
    assert load(with_auto, "auto.sizes=1", "auto=").recipe.auto is None
    assert load("extends: base.yaml\nauto: null\n").recipe.auto is None
    anew = load(with_auto, "auto=null", "auto.max_drop=2pt")
    assert (anew.recipe.auto.max_drop, anew.recipe.auto.sizes) == ("2pt", 2)
    assert str(anew.origin("auto", "sizes")) == "default"


def test_a_block_that_every_run_has_stays():
    error = fails(BASE, "training=null")
    assert error.what == "only start, path, auto, paper can be removed: every run needs training"
    assert (error.where, error.hint) == (
        "command line: training=null", "to change a key in it: training.KEY=VALUE",
    )  # fmt: skip


# --- extends


def write(**files):
    for name, text in files.items():
        path = Path(f"{name.replace('__', '/')}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_a_chain_merges_deeply_and_keeps_origins():
    write(parts__base=BASE, middle="extends: parts/base.yaml\ntraining: {seed: 3, epochs: 2}\n")
    loaded = load("# child\nextends: middle.yaml\ntraining:\n  epochs: 9\ndata:\n")
    training = loaded.recipe.training
    assert (training.seed, training.epochs, training.learning_rate) == (3, 9.0, 3e-4)
    assert str(loaded.origins["training", "epochs"]) == "r.yaml:4"
    assert str(loaded.origins["training", "seed"]) == "middle.yaml:2"
    assert str(loaded.origins["training", "learning_rate"]) == "parts/base.yaml:13"
    assert loaded.recipe.data.path == "some/data"
    assert all(path[0] != "extends" for path in loaded.origins)


def test_an_empty_mapping_takes_back_what_others_named():
    columns = "{instruction: ask, output: reply}"
    named = BASE.replace("some/data", f"some/data\n  columns: {columns}")
    write(base=named.replace("sequence-classification", "causal-lm"))
    child = "extends: base.yaml\n"
    assert load(child).recipe.data.columns == {"instruction": "ask", "output": "reply"}
    assert load(child, "data.columns.output=said").recipe.data.columns["instruction"] == "ask"
    assert load(child, "data.columns={}").recipe.data.columns == {}
    assert load(child + "data: {columns: {}}\n").recipe.data.columns == {}
    assert load(child + "data: {}\n").recipe.data.path == "some/data"  # a block without keys


def test_a_data_set_is_left_for_files():
    recipe = load(BASE, "data.path=", "data.files={train: t.csv, validation: v.csv}").recipe
    assert (recipe.data.path, list(recipe.data.files)) == ("", ["train", "validation"])


def test_lists_are_replaced_not_merged():
    write(base=BASE + "  loggers: [a, b, c]\n")
    assert load("extends: base.yaml\ntraining: {loggers: [d]}").recipe.training.loggers == ["d"]


def test_of_several_bases_the_later_wins():
    write(base=BASE, extra="training: {seed: 5}\n")
    loaded = load("extends: [base.yaml, extra.yaml]\n")
    assert (loaded.recipe.training.seed, loaded.recipe.training.learning_rate) == (5, 3e-4)


def test_a_file_may_be_reached_twice_but_not_from_itself():
    write(base=BASE, a="extends: base.yaml\n", b="extends: base.yaml\n")
    load("extends: [a.yaml, b.yaml]\n")


# --- another method


def test_the_old_methods_options_are_dropped_with_a_note():
    loaded = load(BASE, "method.name=lora")
    assert loaded.method_config == LoraConfig(alpha=4)
    assert loaded.notes == ("method.name=lora (command line): dropped sora's r_max, threshold",)
    assert set(loaded.origins) >= {("method", "alpha"), ("method", "name")}
    assert ("method", "r_max") not in loaded.origins


@pytest.mark.parametrize("order", [1, -1])
def test_new_options_beside_the_new_name_in_any_order(order):
    loaded = load(BASE, *["method.name=lora", "method.r=3"][::order])
    assert loaded.method_config == LoraConfig(alpha=4, r=3)


def test_a_child_file_may_change_the_method():
    write(base=BASE)
    loaded = load("extends: base.yaml\nmethod:\n  name: adalora\n  init_r: 9\n")
    assert loaded.notes == ("method.name=adalora (r.yaml:3): dropped sora's r_max, threshold",)


def test_naming_the_same_method_drops_nothing():
    loaded = load(BASE, "method.name=sora")
    assert loaded.notes == ()
    assert loaded.method_config == SoraConfig(r_max=4, threshold=1e-3, alpha=4)


def test_options_the_new_layer_gives_must_be_known():
    error = fails(BASE, "method.name=lora", "method.r_max=3")
    assert error.what == "unknown key 'r_max' in method (lora)"
    assert error.where == "command line: method.r_max=3"


def test_a_typo_is_not_dropped_with_the_old_method():
    text = BASE.replace("threshold", "treshold")
    assert "unknown key 'treshold'" in fails(text, "method.name=lora").what


# --- errors


def test_a_typo_explains_the_missing_block_and_others_are_counted():
    error = fails(BASE.replace("model:", "modle:"))
    assert error.what == "unknown block 'modle' (and 1 more problem)"


def test_numbers_where_text_is_due_get_told_about_quotes():
    error = fails(BASE, "data.name=7")
    assert error.what == "data.name must be text or null, not 7"
    assert "data.name='\"7\"'" in error.hint
    assert load(BASE, "data.name='\"7\"'".replace("'", "")).recipe.data.name == "7"


def test_long_values_are_cut():
    assert len(fails(BASE, f"training.epochs={'x' * 500}").what) < 150


def test_resolved_values_are_a_recipe_themselves():
    """Also where a block is left out: it is `path: null` then."""
    resolved = load().resolved()
    assert resolved["path"] is None
    assert load(json.dumps(resolved)).resolved() == resolved
    assert load(f"{BASE}path:\noutput:\n").resolved() == resolved


def test_overrides_of_absurd_depth():
    for depth in (60, 5000):
        assert "is not an override" in fails(BASE, f"{'.'.join('a' * depth)}=1").what
    assert "unknown block 'a'" in fails(BASE, "a.a.a.a=1").what


def test_overrides_that_are_no_text():
    for text in ("\udcff=1", "data.name=\udcff", "data.name='\udcff'"):
        assert fails(BASE, text).what == "an override is not UTF-8 text"


def test_extends_of_an_impossible_name():
    assert fails(f'{BASE}extends: "a\\0b"\n').what == "text cannot hold a NUL character"


def test_a_report_trusts_nobodys_code():
    """A run may be anybody's, and its report says what they like."""
    trust = ["model.trust_remote_code=true"]
    stored = load(BASE, *trust).resolved()
    assert stored["model"]["trust_remote_code"] is True
    assert not load_stored(stored, Path("report.json"), "x").recipe.model.trust_remote_code
    assert load_stored(stored, Path("report.json"), "x", trust).recipe.model.trust_remote_code
