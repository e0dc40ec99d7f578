"""Texts for messages: types of options in words, shortened lists, hints for missing files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from methods.words import closest

_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)

_FILES = 8  # names of files in a hint, at most
_LARGE = 10**6
_LARGE_BOUND = re.compile(r" and at most \d{7,}")


def expected(model: type[BaseModel], field: str, *, value: Any = None) -> tuple[str, list[str]]:
    """Return the type of a field in words, and its choices (empty if it has no fixed choices).

    Args:
        value: the given value. Bounds in the millions are named only if the value is that large.
    """
    schema = model.model_json_schema()["properties"][field]
    words = _either(_options(schema))
    if not (isinstance(value, int | float) and value > _LARGE):
        words = _LARGE_BOUND.sub("", words)
    return words, _choices(schema)


def first_few(names: Iterable[object], most: int = 3) -> str:
    """Join the first names, and count the rest: "a, b, c and 2 more"."""
    known = [str(name) for name in names]
    left = len(known) - most
    return ", ".join(known[:most]) + (f" and {left} more" if left > 0 else "")


def listed(names: Iterable[str], most: int = 12) -> str:
    """Join names from files: long names are cut, and names with outer spaces are quoted."""
    short = (name if len(name) <= 40 else f"{name[:37]}..." for name in names)
    return first_few((name if name == name.strip() else f"'{name}'" for name in short), most)


def near_files(
    path: Path, pattern: str = "*", *, wanted: Callable[[Path], object] = Path.exists
) -> str | None:
    """Return a hint that names the files beside a missing file; None if there are none.

    Args:
        wanted: returns True for a path to consider.
    """
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f"there is no directory '{folder}'"
    candidates = (entry.name for entry in folder.glob(pattern) if wanted(entry))
    # the name itself is there if it is a dangling link
    names = sorted(name for name in candidates if name != path.name)
    near = closest(path.name, names)
    if near is not None:
        return f"did you mean '{shown_path(folder / near)}'?"
    return f"in {folder} there are: {first_few(names, _FILES)}" if names else None


def shown_path(path: Path) -> str:
    """Return a path as text: relative if it lies below the working directory."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)


def shown_value(value: Any) -> str:
    """Return a value in YAML's notation, cut to 60 characters."""
    if isinstance(value, str):
        return f"'{value if len(value) <= 60 else value[:57] + '...'}'"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def default_of(model: type[BaseModel], field: str) -> Any:
    """Return a field's default; None for a required field."""
    info = model.model_fields[field]
    return None if info.is_required() else info.get_default(call_default_factory=True)


def _options(schema: Mapping[str, Any]) -> list[str]:
    """Return each alternative of a schema in words."""
    if "anyOf" in schema:
        return [words for option in schema["anyOf"] for words in _options(option)]
    return _choices(schema) or [_words(schema)]


def _words(schema: Mapping[str, Any]) -> str:
    match schema.get("type"):
        case "integer":
            return f"a whole number{_bounds(schema)}"
        case "number":
            return f"a number{_bounds(schema)}"
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case "null":
            return "null"
        case "array":
            return _array(schema)
        case "object":
            inner = schema.get("additionalProperties")
            texts = isinstance(inner, Mapping) and inner.get("type") == "string"
            return f"a mapping of keys to {'texts' if texts else 'values'}"
    if "$ref" in schema:
        return "a block of keys"
    return "something else"


def _array(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        items = [_words(item) for item in schema["prefixItems"]]
        alike = f"each {items[0]}" if len(set(items)) == 1 else ", ".join(items)
        return f"a list of {len(items)} values, {alike}"
    inner = schema.get("items", {})
    if "minItems" in schema:
        least = schema["minItems"]
        return f"a list of at least {least} value{'' if least == 1 else 's'}"
    return "a list of texts" if inner.get("type") == "string" else "a list"


def _bounds(schema: Mapping[str, Any]) -> str:
    parts = [f"{word} {_number(schema[key])}" for key, word in _BOUNDS if key in schema]
    return f" {' and '.join(parts)}" if parts else ""


def _number(bound: float) -> str:
    """Format a bound; whole numbers of any size are written in full."""
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _choices(schema: Mapping[str, Any]) -> list[str]:
    if "anyOf" in schema:
        return [choice for option in schema["anyOf"] for choice in _choices(option)]
    if "const" in schema:
        return [str(schema["const"])]
    return [str(choice) for choice in schema.get("enum", [])]


def _either(options: list[str]) -> str:
    unique = list(dict.fromkeys(options))
    if "a number" in unique and "a whole number" in unique:
        unique.remove("a whole number")
    return " or ".join([", ".join(unique[:-1]), unique[-1]]) if len(unique) > 1 else unique[0]
