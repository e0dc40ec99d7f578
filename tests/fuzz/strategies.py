"""Recipes and overrides with something wrong with them, or nearly."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import hypothesis.strategies as st

from tests.fuzz.odd_recipes import LINES, NUMBERS, ODD_KEYS, USUAL, WORDS, YAML_VALUES

Draw = Callable[..., Any]
Path_ = tuple[str, ...]

yaml_values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *WORDS]) | st.text(max_size=9) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=6,
)
positions = st.floats(0, 1, exclude_max=True)
yaml_text = st.text(
    st.sampled_from("ab: \n\n  -?&*!|>{}[],#'\"%@`\\\t~<.01e\x00\x1b\ufeffé\u2028\ud7ff")
    | st.characters(codec="utf-8"),
    max_size=60,
)


@st.composite
def recipes(draw: Draw, texts: Mapping[str, str], trees: Mapping[str, Any]) -> bytes:
    """A recipe's bytes: a real one changed in a few ways, or none at all.

    Args:
        texts: real recipes.
        trees: the same, parsed.
    """
    name = draw(st.sampled_from(sorted(texts)))
    kind = draw(st.sampled_from(["tree", "tree", "text", "text", "both", "noise"]))
    if kind == "noise":
        noise: bytes = draw(st.binary(max_size=60) | yaml_text.map(str.encode))
        return noise
    text = texts[name]
    if kind in {"tree", "both"}:
        text = _written(draw, _changed_tree(draw, copy.deepcopy(trees[name])))
    if kind in {"text", "both"}:
        text = _changed_text(draw, text)
    return _encoded(draw, text)


def _changed_tree(draw: Draw, tree: dict[str, Any]) -> dict[str, Any]:
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        path = draw(st.sampled_from(places))
        block, key = _at(tree, path[:-1]), path[-1]
        value = block[key]
        match draw(st.sampled_from(["set", "set", "set", "remove", "rename", "move", "list", "add",
                                    "nest"])):  # fmt: skip
            case "set":
                block[key] = draw(yaml_values)
            case "remove":
                del block[key]
            case "rename":
                del block[key]
                block[draw(st.sampled_from([f"{key}s", key[:-1], key.upper(), *WORDS]))] = value
            case "move":
                del block[key]
                home = _at(tree, draw(st.sampled_from(places))[:-1])
                home[key] = value
            case "list":
                block[key] = [value] * draw(st.integers(0, 3))
            case "add":
                block[draw(st.sampled_from(WORDS))] = draw(yaml_values)
            case "nest":
                block[key] = {key: value}
        if not tree:
            break
    return tree


def _places(tree: Mapping[str, Any], path: Path_ = ()) -> Iterator[Path_]:
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _places(value, (*path, key))


def _at(tree: dict[str, Any], path: Path_) -> dict[str, Any]:
    """The block at a path, or the last above it that is one: it may have been changed before."""
    for key in path:
        inner = tree.get(key)
        if not isinstance(inner, dict):
            return tree
        tree = inner
    return tree


def _written(draw: Draw, tree: Mapping[str, Any]) -> str:
    """In flow style, or one line per entry of the first two levels."""
    if draw(st.booleans()):
        return yaml_of(tree)
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            inner = (f"  {yaml_of(k)}: {yaml_of(v)}" for k, v in value.items())
            lines += [f"{yaml_of(key)}:", *inner]
        else:
            lines.append(f"{yaml_of(key)}: {yaml_of(value)}")
    return "\n".join(lines)


def yaml_of(value: Any) -> str:
    """JSON, which is YAML but for characters that YAML wants escaped, and for long keys."""
    text = json.dumps(value, ensure_ascii=False)
    text = text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
    return re.sub(r"[^\x20-\x7e\xa1-\ud7ff\ue000-\ufefe]", _escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\U{ord(match[0]):08x}"


def _changed_text(draw: Draw, text: str) -> str:
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        i = int(draw(positions) * len(lines))
        line = lines[i] if lines else ""
        match draw(st.sampled_from(["value", "value", "value", "remove", "twice", "swap", "insert",
                                    "insert", "indent", "outdent", "alias", "tag",
                                    "text"])):  # fmt: skip
            case "value":
                key = re.match(r"\s*[\w\"]+:", line)
                if key is not None:
                    lines[i] = f"{key[0]} {draw(st.sampled_from(YAML_VALUES))}"
            case "remove":
                del lines[i : i + 1]
            case "twice":
                lines[i:i] = [line]
            case "swap":
                j = int(draw(positions) * len(lines))
                if lines:
                    lines[i], lines[j] = lines[j], lines[i]
            case "insert":
                lines[i:i] = [draw(st.sampled_from(LINES))]
            case "indent":
                lines[i : i + 1] = [f"{draw(st.sampled_from([' ', '  ', '    ', chr(9)]))}{line}"]
            case "outdent":
                lines[i : i + 1] = [line.lstrip()]
            case "alias":
                key = re.match(r"(\s*\w+:) *(\S+)$", line)
                if key is not None:
                    lines[i] = f"{key[1]} &x {key[2]}"
                    lines += [f"{draw(st.sampled_from(['x', 'output', 'path', '  seed']))}: *x"]
            case "tag":
                tag = draw(
                    st.sampled_from(["!!str", "!!int", "!!map", "!!seq", "!x", "!!python/none"])
                )
                lines[i : i + 1] = [line.replace(": ", f": {tag} ", 1)]
            case "text":
                lines[i:i] = [draw(yaml_text)]
    return "\n".join(lines)


def _encoded(draw: Draw, text: str) -> bytes:
    kind = draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "crlf", "bytes", "cut"]))
    if kind == "crlf":
        return text.replace("\n", "\r\n").encode("utf-8", "surrogatepass")
    if kind in {"bytes", "cut"}:
        content = bytearray(text.encode("utf-8", "surrogatepass"))
        at = int(draw(positions) * len(content))
        if kind == "cut":
            return bytes(content[:at])
        content[at : at + 1] = draw(st.binary(min_size=1, max_size=3))
        return bytes(content)
    return text.encode(kind, "surrogatepass")


@st.composite
def overrides(draw: Draw, values: Mapping[str, Any]) -> list[str]:
    """One to three words that are overrides, or nearly.

    Args:
        values: key -> value of a real recipe.
    """
    return [_override(draw, values) for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 3])))]


def _override(draw: Draw, values: Mapping[str, Any]) -> str:
    kind = draw(st.sampled_from(["usual", "usual", "usual", "odd value", "odd value", "odd key",
                                 "noise"]))  # fmt: skip
    key = draw(st.text(max_size=6) if kind == "noise" else st.sampled_from(sorted(values)))
    if kind == "odd key":
        key = draw(st.sampled_from(ODD_KEYS))
    if kind == "usual":
        value = draw(_like(values[key]))
    else:
        numbers = [str(number) for number in NUMBERS if number != 10**400]
        text = st.sampled_from([*USUAL, *YAML_VALUES, *WORDS, *numbers]) | st.text(max_size=12)
        value = draw(text | yaml_values.map(yaml_of))
    equals = draw(st.sampled_from(["="] * 16 + ["", "==", " = ", ":"]))
    return f"{key}{equals}{value}"


def _like(value: Any) -> st.SearchStrategy[str]:
    """What somebody may write for a key that has this value."""
    match value:
        case bool():
            return st.sampled_from(["true", "false"])
        case int():
            return st.integers(0, 100).map(str)
        case float():
            return st.floats(0, 10).map(str) | st.sampled_from(["1e-3", "3e-4", ".5", "1"])
        case None:
            return st.sampled_from(["null", "~", *USUAL])
        case _:
            return st.just(yaml_of(value)) | st.sampled_from(USUAL)
