"""YAML with lines: what is read, what is refused, and where it is said to be."""

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.recipe.yaml_lines import Origin, parse_file, parse_value


def values(text):
    return parse_file(text.encode(), "f.yaml").values


def error(content):
    with pytest.raises(SoraError) as caught:
        parse_file(content if isinstance(content, bytes) else content.encode(), "f.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3", 3),
        ("010", 10),
        ("0x10", 16),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("[a, 1, 2e-1]", ["a", 1, 0.2]),
        ("{a: [b]}", {"a": ["b"]}),
    ],
)
def test_values_are_typed_alike_in_files_and_overrides(text, value):
    assert parse_value(text) == value
    assert values(f"key: {text}") == {"key": value}
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["C:\\models", "a: b", "@x", "*star", "a #b", "!tag", "- 1", "%"])
def test_odd_text_on_the_command_line_is_text(text):
    assert parse_value(text) == text


@pytest.mark.parametrize("text", ["[a", "{a: ", "'a", '"', "[.inf]"])
def test_broken_values_on_the_command_line_are_errors(text):
    with pytest.raises(SoraError):
        parse_value(text)


def test_every_key_and_item_knows_its_line():
    tree = parse_file(b"a:\n  b: 1\n  c:\n    - x\n    - y\n# comment\nd: 2\n", "f.yaml")
    lines = {".".join(path): origin.line for path, origin in tree.origins.items()}
    assert lines == {"a": 1, "a.b": 2, "a.c": 3, "a.c.0": 4, "a.c.1": 5, "d": 7}
    assert str(tree.origins["a", "b"]) == "f.yaml:2"


def test_aliases_are_followed():
    assert values("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is given twice", "f.yaml:1 and f.yaml:3"),
        ("x:\n  a: 1\n  a: 3", "'x.a' is given twice", "f.yaml:2 and f.yaml:3"),
        ("a: !!bool maybe", "not a valid bool", "f.yaml:1"),
    ],
)
def test_refusals_say_what_and_where(content, what, where):
    found = error(content)
    assert what in found.what
    assert found.where == where
    assert len(found.lines()) <= 3


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert parse_file(b"\xef\xbb\xbfa: 1", "f.yaml").values == {"a": 1}


def test_origins_as_text():
    assert str(Origin("default")) == "default"
    override = Origin("command line", text="a.b=1")
    assert str(override) == "command line"
    assert override.place == "command line: a.b=1"


def test_two_halves_of_a_character_are_one():
    assert values(r'a: "\ud83d\ude00"') == {"a": "\U0001f600"}
    assert values(r'{"\ud83d\ude00": "é"}') == {"\U0001f600": "é"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r'a: b\nc: "\ud83d"', "text that is not Unicode"),
        (r'a: b\n"\ude00": c', "text that is not Unicode"),
        (r'a: b\nc: "x\0y"', "text cannot hold a NUL character"),
    ],
)
def test_text_that_is_none(text, message):
    caught = error(text.replace(r"\n", "\n"))
    assert (caught.what, caught.where) == (message, "f.yaml:2")


def test_an_escape_that_stands_for_no_character():
    caught = error(r'a: "\U00110000"')
    assert caught.what == "not valid YAML: an escape that stands for no character"
    with pytest.raises(SoraError, match="no character"):
        parse_value(r'"\U00110000"')


@pytest.mark.parametrize("depth", [60, 150, 250, 400, 5000])
def test_nested_too_deeply(depth):
    """Either may refuse it first: the parser, or the step from its nodes to values."""
    for text in ("[" * depth + "]" * depth, "{a: " * depth + "1" + "}" * depth):
        assert "nested too deeply" in error(f"a: {text}").what
    assert values(f"a: {'[' * 40}{']' * 40}")
