"""`--code`: methods, task families and loggers from a user's file."""

from importlib.metadata import EntryPoint

import pytest

from methods import registry
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.recipe import families, plugins
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.metric_facts import facts_of
from sora_cli.recipe.plugins import load_code
from sora_cli.tasks import task_class
from sora_cli.verify.task_contract import CHECKS
from tests.helpers_errors import error_of
from tests.helpers_families import FAMILIES
from tests.helpers_methods import method_words

METHOD = """\
from methods.base import AdapterMethod
from methods.configs import LoraConfig
from methods.lora import Lora
from pydantic import Field


class Config(LoraConfig):
    paper = "nobody 2024"
    boost: float = Field(1.0, gt=0, description="how much")


class Mine(Lora):
    name = "mine"
    config_class = Config
"""


LOGGER = """\
from transformers import TrainerCallback


class Lines(TrainerCallback):
    name = "lines"

    def on_log(self, args, state, control, logs=None, **kwargs):
        print(sorted(logs))


class Nameless(TrainerCallback):
    pass
"""


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch):
    monkeypatch.setattr(plugins, "LOGGERS", {})
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(families, "_ADDED", {})


@pytest.fixture
def file(tmp_path):
    def write(text, name="my_method.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_classes_in_the_file_are_registered_once_loaded(file):
    path = file(METHOD)
    module = load_code(path)
    assert registry.method_class("mine") is module.Mine
    assert load_code(path) is module
    assert "lora" in registry.method_names()  # imported classes are not registered again


def test_the_decorator_works_too(file):
    text = METHOD.replace(
        "class Mine", "from methods.registry import register\n@register\nclass Mine"
    )
    module = load_code(file(text))
    assert registry.method_class("mine") is module.Mine


def test_recipes_know_its_options(file, tmp_path):
    load_code(file(METHOD))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: {path: m}\ntask: {name: causal-lm}\ndata: {path: d}\n"
        "method: {name: mine, boost: 2}\n"
    )
    assert load_recipe(recipe).resolved()["method"]["boost"] == 2.0
    assert registry.config_class("mine").paper == "nobody 2024"
    with pytest.raises(SoraError, match=r"method\.boost must be a number above 0"):
        load_recipe(recipe, ["method.boost=0"])


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("x = 1\ny = nothing\n", "NameError", 2),
        ("x = (\n", "SyntaxError", 1),
        ("import no_such_module_at_all\n", "ModuleNotFoundError", 1),
        ("import sys\nsys.exit(3)\n", "SystemExit", 2),
    ],
)
def test_a_file_that_fails_says_where(file, text, what, line):
    path = file(text)
    for _ in range(2):  # nothing half loaded stays behind
        with pytest.raises(SoraError) as caught:
            load_code(path)
        assert what in caught.value.what
        assert caught.value.where == f"{path}:{line}"


def test_an_older_file_says_where_a_paper_belongs_now(file):
    path = file(METHOD.replace('name = "mine"', 'name, paper = "mine", "nobody 2024"'))
    with pytest.raises(SoraError, match=r"Mine\.paper belongs .*: move it to Config") as caught:
        load_code(path)
    assert caught.value.where == f"{path}:12"


def test_a_file_without_methods(file):
    with pytest.raises(SoraError, match="defines no adapter method"):
        load_code(file("from methods.lora import Lora\n"))


def test_a_file_with_a_logger(file):
    module = load_code(file(LOGGER))
    assert {"lines": module.Lines} == plugins.LOGGERS


def test_a_taken_or_missing_name(file):
    with pytest.raises(SoraError, match="'lora' is taken"):
        load_code(file(METHOD.replace('"mine"', '"lora"')))
    nameless = (
        "from methods.base import AdapterMethod\n"
        "class M(AdapterMethod):\n"
        "    def wrap(self, linear, *, generator): ...\n"
    )
    with pytest.raises(SoraError, match="M has no name"):
        load_code(file(nameless, "nameless.py"))


def test_missing_and_foreign_files(file):
    near = file(METHOD)
    with pytest.raises(SoraError) as caught:
        load_code(near.with_name("my_methode.py"))
    assert "my_method.py" in caught.value.hint
    with pytest.raises(SoraError, match="is no Python file"):
        load_code(file("x", "notes.txt"))


FAMILY = """\
from typing import ClassVar

from sora_cli.recipe.metric_facts import MetricFacts
from sora_cli.recipe.task_options import SequenceRegressionOptions
from sora_cli.tasks.sequence import SequenceRegression


class SteepOptions(SequenceRegressionOptions):
    NAME: ClassVar[str] = "steep"

    power: int = 4
    METRIC_FACTS = {"within_a_tenth": MetricFacts(ends_at_1=True, right_or_wrong=True)}


class Steep(SequenceRegression):
    OPTIONS = SteepOptions

    def inputs_of(self, batch):
        return {name: value for name, value in batch.items() if name != "labels"}

    def loss_of(self, outputs, batch):
        error = outputs["logits"].reshape(-1).float() - batch["labels"]
        return (error**self.options.power).mean()

    def loss(self, predictions):
        error = self.answers(predictions).astype(float) - predictions.true_labels
        return float((error**self.options.power).mean())
"""


def test_a_family_of_a_file_keeps_the_contract(file, tmp_path):
    load_code(file(FAMILY, "steep.py"))
    assert "steep" in families.task_names()
    assert families.built_on("steep") == "sequence-regression"
    recipe = FAMILIES["sequence-regression"](tmp_path)
    loaded = load_recipe(str(recipe), ["task.name=steep", "task.power=2"])
    assert loaded.recipe.task.options.power == 2
    for check in CHECKS:
        check(loaded.recipe)
    assert facts_of("within_a_tenth").right_or_wrong
    with pytest.raises(SoraError, match="powr"):
        load_recipe(str(recipe), ["task.name=steep", "task.powr=2"])


def test_a_family_of_a_file_from_training_to_a_certificate(file, tmp_path, capsys):
    """It trains by three methods, answers, is certified, merged; not known without the file."""
    code, recipe = file(FAMILY, "steep.py"), str(FAMILIES["sequence-regression"](tmp_path))
    words, out = ["task.name=steep", "--code", str(code)], str(tmp_path / "out")
    assert run(["train", recipe, *words]) == 0
    assert run(["eval", out, "--recipe", recipe, *words, "--json"]) == 0
    rows = str(tmp_path / "validation.jsonl")
    answers = str(tmp_path / "answers.jsonl")
    assert run(["predict", out, rows, "-o", answers, "--code", str(code)]) == 0
    assert run(["merge", out, "-o", str(tmp_path / "merged")]) == 0
    small = ["prune", out, "-o", str(tmp_path / "small"), "--max-drop", "90pt", "--code", str(code)]
    assert run([*small, "--recipe", recipe, "task.name=steep"]) in (0, 3)
    for method in ("lora", "adalora"):
        named = [*method_words(method), f"output.dir={tmp_path}/{method}"]
        assert run(["train", recipe, *words, *named]) == 0
    capsys.readouterr()
    families._ADDED.clear()
    error = error_of(capsys, "eval", out, "--recipe", recipe, "task.name=steep")
    assert "steep" in error[0]
    assert "--code" in " ".join(error)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (('NAME: ClassVar[str] = "steep"', "other: ClassVar[int] = 1"), "no OPTIONS with a NAME"),
        (('"steep"', '"seq2seq"'), "there is a task family 'seq2seq' already"),
        (('"within_a_tenth"', '"accuracy"'), "another kind already"),
    ],
)
def test_families_that_cannot_be_added(file, change, fault):
    with pytest.raises(SoraError, match=fault):
        load_code(file(FAMILY.replace(*change), "wrong.py"))


def test_a_family_of_a_package(file, monkeypatch):
    path = file(f"{FAMILY}\n\nSteepOptions.FAMILY = 'a_package_of_families:Steep'\n",
                "a_package_of_families.py")  # fmt: skip
    monkeypatch.syspath_prepend(path.parent)
    point = EntryPoint("steep", "a_package_of_families:SteepOptions", families.ENTRY_POINT_GROUP)
    monkeypatch.setattr(families, "entry_points", lambda **_: [point])
    families._add_packages.cache_clear()
    assert task_class("steep").__name__ == "Steep"
    families._ADDED.clear()
    families._add_packages.cache_clear()
    wrong = EntryPoint("other", point.value, point.group)
    monkeypatch.setattr(families, "entry_points", lambda **_: [wrong])
    with pytest.raises(SoraError, match="another NAME"):
        families.task_names()
    families._add_packages.cache_clear()
