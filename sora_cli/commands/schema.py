"""`sora schema`: the JSON schema of recipes, for completion and checks in editors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from methods.registry import method_names
from sora_cli.commands.options import Code, load_plugins
from sora_cli.core.console import emit
from sora_cli.recipe.families import task_names
from sora_cli.recipe.open_blocks import OPEN_BLOCKS
from sora_cli.recipe.recipe import Recipe


def schema(code: Code = None) -> None:
    """Print the schema with the options of every registered method."""
    load_plugins(code)
    emit(schema_text(method_names()))


def schema_text(methods: Sequence[str]) -> str:
    """Return the schema of a recipe as indented JSON text."""
    return json.dumps(recipe_schema(methods), indent=2)


def recipe_schema(methods: Sequence[str]) -> dict[str, Any]:
    """Return the JSON schema of a recipe file.

    All blocks and keys are optional in the schema, because a file that extends another one need not
    repeat them; loading checks for missing keys. `method` and `task` accept the options of their
    `name`, or all options if the name is in another file.
    """
    schema = Recipe.model_json_schema()
    blocks: dict[str, Any] = schema["$defs"]
    for block in blocks.values():
        block.pop("required", None)
    choices = {"MethodBlock": methods, "TaskBlock": task_names()}
    for (block, names), known in zip(choices.items(), ("method", "task"), strict=True):
        options = {name: OPEN_BLOCKS[known].options(name).model_json_schema() for name in names}
        blocks[block] = _open_schema(blocks[block], f"The {known} and its own options.", options)
    extends = {
        "description": "a recipe this one is built on, or a list of them; paths from this file",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sora recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "extends": extends,
            **{block: _reference(p) for block, p in schema["properties"].items()},
        },
        "$defs": blocks,
    }


def _reference(property_: dict[str, Any]) -> dict[str, Any]:
    """Return the reference to a key's block, for required and optional blocks."""
    return next(
        {"$ref": p["$ref"]} for p in (property_, *property_.get("anyOf", [])) if "$ref" in p
    )


def _open_schema(
    block: dict[str, Any], description: str, options: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the schema of a block that accepts the options of its `name`."""
    name = {**block["properties"]["name"], "enum": list(options)}
    every = {key: None for schema in options.values() for key in schema.get("properties", {})}
    known = {"propertyNames": {"enum": ["name", *every]}}
    return {
        "description": description,
        "type": "object",
        "properties": {"name": name},
        "allOf": [
            {"if": {"not": {"required": ["name"]}}, "then": known},
            *[_branch(choice, name, schema) for choice, schema in options.items()],
        ],
    }


def _branch(choice: str, name: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the rule: a block with this `name` accepts its options and no others."""
    return {
        "if": {"properties": {"name": {"const": choice}}, "required": ["name"]},
        "then": {
            "properties": {"name": name, **schema.get("properties", {})},
            "additionalProperties": False,
        },
    }
