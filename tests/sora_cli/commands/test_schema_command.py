"""`sora schema`, and the copy of it that editors read."""

import json

import pytest

from methods.registry import builtin_names, config_class
from sora_cli.app import run
from sora_cli.commands.schema import recipe_schema, schema_text
from sora_cli.recipe.families import options_class, task_names
from sora_cli.recipe.library import SCHEMA_FILE, recipes_dir
from sora_cli.recipe.recipe import Recipe

BUILT_IN = builtin_names()


def test_the_shipped_schema_is_current():
    shipped = (recipes_dir() / SCHEMA_FILE).read_text(encoding="utf-8")
    assert shipped == f"{schema_text(BUILT_IN)}\n", "sora schema > recipes/schema.json"


def test_the_command_prints_it(capsys):
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$defs"].keys() >= {"DataBlock", "TrainingBlock"}


def test_unknown_keys_are_refused_and_extends_is_known():
    schema = recipe_schema(BUILT_IN)
    assert set(schema["properties"]) == {"extends", *Recipe.model_fields}
    assert schema["additionalProperties"] is False
    for name, block in schema["$defs"].items():
        assert name in {"MethodBlock", "TaskBlock"} or block["additionalProperties"] is False
        assert "required" not in block  # a file that extends another need not repeat keys


@pytest.mark.parametrize(
    ("block", "names", "options_of"),
    [("MethodBlock", BUILT_IN, config_class), ("TaskBlock", task_names(), options_class)],
)
def test_each_method_and_task_brings_its_own_options(block, names, options_of):
    schema = recipe_schema(BUILT_IN)["$defs"][block]
    assert schema["properties"]["name"]["enum"] == names
    unnamed, *branches = schema["allOf"]
    for name, branch in zip(names, branches, strict=True):
        options = options_of(name).model_fields
        assert branch["if"]["properties"]["name"] == {"const": name}
        assert set(branch["then"]["properties"]) == {"name", *options}
        assert branch["then"]["additionalProperties"] is False
        assert set(unnamed["then"]["propertyNames"]["enum"]) >= set(options)


def test_options_are_described():
    """An editor shows what a key means, also a family's own."""
    _, *branches = recipe_schema(BUILT_IN)["$defs"]["TaskBlock"]["allOf"]
    branch = branches[task_names().index("causal-lm")]["then"]["properties"]
    assert branch["packing"]["type"] == "boolean"
    assert branch["packing"]["default"] is False
    assert all(option["description"] for option in branch.values())
