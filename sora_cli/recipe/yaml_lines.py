"""A safe YAML reader that keeps the file and line of every key.

Plain scalars follow the YAML 1.2 core schema: `3e-4` is a number, `no`, `on` and `12:30` are text,
only `true` and `false` are truth values. Tags, duplicate keys and non-finite numbers are errors.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sora_cli.core.errors import SoraError

Path_ = tuple[str, ...]
"""Keys from the top down; a position in a list is written as text ("0")."""

_START = "a recipe starts like 'model:'"
DEEPEST = 50
"""Largest depth of nesting."""
_MAX_VALUES = 100_000  # nested aliases can expand a small file to gigabytes (billion laughs)
_TAG = "tag:yaml.org,2002:"
_SCALARS: tuple[tuple[str, str], ...] = (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"),
    ("float", r"\.(nan|NaN|NAN)"),
)


@dataclass(frozen=True)
class Origin:
    """The origin of a value: a file and line, an override, or a default.

    Attributes:
        file: the file's name for messages, or "command line" or "default".
        line: line in the file, from 1.
        text: the override as typed; empty for values from files.
    """

    file: str
    line: int | None = None
    text: str = ""

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    @property
    def place(self) -> str:
        """The origin as error messages show it, with the text of the override."""
        return f"{self}: {self.text}" if self.text else str(self)


@dataclass
class Tree:
    """Plain values, and the origin of every key and list item."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path_, Origin] = field(default_factory=dict)


_ADVICE = {
    "'\\t'": "indent with spaces, not tabs",
    "another document": "one file holds one recipe: take out the line '---'",
    "mapping values are not allowed": "put text with a colon in quotes",
}
"""Hints for errors of the YAML parser, by a part of the parser's message."""


class _Loader(yaml.SafeLoader):
    """A YAML loader with the plain scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}  # a new dict: the inherited one belongs to SafeLoader
for _name, _pattern in _SCALARS:
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$"), None)


def parse_file(content: bytes, file: str) -> Tree:
    """Parse a YAML file that holds a mapping.

    Args:
        file: the file's name for messages and origins.
    """
    tree = _parsed(content, file)
    return Tree(copy.deepcopy(tree.values), dict(tree.origins))


# the runs of a sweep share their files, and parsing took most of the time of planning
@functools.lru_cache(maxsize=32)
def _parsed(content: bytes, file: str) -> Tree:
    node = _compose(_decode(content, file), file)
    if node is None:
        raise SoraError("the file is empty", where=file, hint=_START)
    if not isinstance(node, MappingNode):
        raise SoraError("the file holds no blocks", where=file, hint=_START)
    builder = _Builder(file)
    values = builder.build(node, ())
    return Tree(values, builder.origins)


def parse_value(text: str) -> Any:
    """Parse a value of the command line: a YAML list, mapping, quoted text or plain scalar."""
    if text.lstrip()[:1] in {"[", "{", '"', "'"}:
        node = _compose(text, "")
    else:
        plain = text.strip()
        tag = next((n for n, p in _SCALARS if re.fullmatch(p, plain)), "str")
        node = ScalarNode(f"{_TAG}{tag}", plain)
    return _Builder("").build(node, ())


def _decode(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SoraError(
            "the file is not UTF-8 text",
            where=str(Origin(file, line)),
            hint="save it in the encoding UTF-8",
        ) from error


def _compose(text: str, file: str) -> Any:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _fail(f"not valid YAML: {error.reason}", Origin(file, line), cause=error)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "it cannot be read"
        if problem.startswith("but ") and error.context:
            problem = f"{error.context}, {problem}"
        hint = next((advice for sign, advice in _ADVICE.items() if sign in problem), None)
        origin = Origin(file, mark.line + 1 if mark else None)
        _fail(f"not valid YAML: {problem}", origin, hint=hint, cause=error)
    except RecursionError as error:
        _fail("not valid YAML: nested too deeply", Origin(file), cause=error)
    except ValueError as error:  # PyYAML calls chr(), which raises for "\\U00110000"
        _fail("not valid YAML: an escape that stands for no character", Origin(file), cause=error)


class _Builder:
    """Conversion of YAML nodes to plain values; it records the origin of each value."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.origins: dict[Path_, Origin] = {}
        self._open: list[Node] = []
        self._count = 0

    def build(self, node: Node, path: Path_) -> Any:
        self._count += 1
        # an alias to a node that is still open would contain itself
        if self._count > _MAX_VALUES or any(node is above for above in self._open):
            _fail("aliases make this file endless", self._origin(node))
        if len(self._open) == DEEPEST:
            _fail("nested too deeply", self._origin(node))
        self._open.append(node)
        try:
            return self._build(node, path)
        finally:
            self._open.pop()

    def _build(self, node: Node, path: Path_) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, MappingNode) and kind == "map":
            return {
                key: self.build(value, (*path, key)) for key, value in self._entries(node, path)
            }
        if isinstance(node, SequenceNode) and kind == "seq":
            for i, item in enumerate(node.value):
                self.origins[(*path, str(i))] = self._origin(item)
            return [self.build(item, (*path, str(i))) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and kind in _SCALAR_VALUES:
            return self._scalar(node, kind)
        tag = node.tag.replace(_TAG, "!!")
        return _fail(f"the YAML tag {tag} is not allowed", self._origin(node))

    def _entries(self, node: MappingNode, path: Path_) -> Iterator[tuple[str, Node]]:
        seen: dict[str, Origin] = {}
        for key_node, value in node.value:
            origin = self._origin(key_node)
            if not isinstance(key_node, ScalarNode) or key_node.tag != f"{_TAG}str":
                text = key_node.value if isinstance(key_node, ScalarNode) else "a list or mapping"
                _fail(f"keys must be text, not {text}", origin)
            key = self._text(key_node)
            if key == "<<":
                _fail("merge keys (<<) are not supported", origin, hint="use extends: other.yaml")
            if key in seen:
                _fail(f"'{'.'.join((*path, key))}' is given twice", seen[key], second=origin)
            seen[key] = self.origins[(*path, key)] = origin
            yield key, value

    def _scalar(self, node: ScalarNode, kind: str) -> Any:
        text = self._text(node)
        try:
            return _SCALAR_VALUES[kind](text)
        except (ValueError, KeyError) as error:
            what = "is not a finite number" if kind == "float" else f"is not a valid {kind}"
            hint = "put it in quotes if it is meant as text"
            return _fail(f"'{text[:40]}' {what}", self._origin(node), hint=hint, cause=error)

    def _text(self, node: ScalarNode) -> str:
        """Return the text of a scalar; an escaped surrogate pair is one character, as in JSON."""
        try:
            text = str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            return _fail("text that is not Unicode", self._origin(node), cause=error)
        if "\0" in text:
            _fail("text cannot hold a NUL character", self._origin(node))
        return text

    def _origin(self, node: Node) -> Origin:
        mark = node.start_mark
        return Origin(self.file, None if mark is None else mark.line + 1)


def _integer(text: str) -> int:
    return int(text, 0) if text[1:2] in {"x", "o"} else int(text)


def _number(text: str) -> float:
    number = float(text)  # raises on .inf and .nan
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_SCALAR_VALUES: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _integer,
    "float": _number,
}


def _fail(
    what: str,
    origin: Origin,
    *,
    second: Origin | None = None,
    hint: str | None = None,
    cause: BaseException | None = None,
) -> NoReturn:
    where = str(origin) if second is None else f"{origin} and {second}"
    raise SoraError(what, where=where if origin.file else None, hint=hint) from cause
