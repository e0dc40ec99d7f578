"""Pydantic models as tables: key, accepted values, default, meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sora_cli.core.words import default_of, expected
from tools.reference.markdown import code, table

COLUMNS = ("key", "takes", "default", "meaning")


def key_table(model: type[BaseModel], *, without: Container[str] = ()) -> str:
    """Return a table of a model's keys; keys of an inner block are written with dots."""
    return table(COLUMNS, _rows(model, without))


def value_table(model: type[BaseModel], *, without: Container[str] = ()) -> str:
    """Return a table of the keys in a written file: key, type, meaning."""
    rows = [
        [code(name), _json_type(expected(model, name)[0]), info.description or ""]
        for name, info in model.model_fields.items()
        if name not in without
    ]
    return table(("key", "type", "meaning"), rows)


def nested(info: FieldInfo) -> tuple[str, type[BaseModel]] | None:
    """Return the path from a field to the model inside its type (such as "[]"), and the model.

    None: the type contains no model.
    """
    return _nested(info.annotation)


def _json_type(words: str) -> str:
    words = re.sub("a (mapping of keys to (values|texts)|block of keys)", "an object", words)
    return words.replace("something else", "a value")


def _rows(
    model: type[BaseModel], without: Container[str], prefix: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    for name, info in model.model_fields.items():
        if name in without:
            continue
        inner = nested(info)
        if inner is not None:
            yield from _rows(inner[1], (), f"{prefix}{name}.")
            continue
        meaning = info.description or ""
        yield code(prefix + name), expected(model, name)[0], _default(model, name, info), meaning


def _default(model: type[BaseModel], name: str, info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    if info.default_factory_takes_validated_data:  # computed from other keys: see the meaning
        return "unset"
    value = default_of(model, name)
    if value is None or value == "":
        return "unset"
    return code(value if isinstance(value, str) else json.dumps(value))


def _nested(annotation: Any) -> tuple[str, type[BaseModel]] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "", annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    steps = {list: "[]", dict: ".NAME"}
    for argument in reversed(arguments):
        inner = None if argument is NoneType else _nested(argument)
        if inner is not None:
            return steps.get(origin, "") + inner[0], inner[1]
    return None
