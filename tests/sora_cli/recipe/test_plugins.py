"""`--code`: methods from a user's file."""

import pytest

from methods import registry
from sora_cli.core.errors import SoraError
from sora_cli.recipe import plugins
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.plugins import load_code

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
