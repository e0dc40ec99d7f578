"""PEFT's matching rule, against PEFT's own function, and its bound on time."""

from __future__ import annotations

import pytest
from peft.utils.other import get_pattern_key

from sora_cli.adapter.peft.patterns import anchored, match_patterns
from sora_cli.core.errors import SoraError

PATHS = [
    *(f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1, 10) for n in "qv"),
    "c+d.(x)",
    "a.query",
    "b.a.query",
    "aXquery",
]
PATTERNS = [
    "q_proj", "proj", "self_attn.q_proj", r"self_attn\.q_proj", "layers.1", r"layers\.1\..*",
    ".*q_proj", "(q|v)_proj", "^a.query", "a.query", "query", "^query", "q_proj$", "", ".",
    "x|query", r"\d+\.self_attn\.[qv]_proj", r"^model\.layers\.(0|1)\..*", r"\w+", r"(?P<a>q)_proj",
    "^c+d", *map(anchored, PATHS), anchored("not.there"), "model.layers.0.self_attn.q_proj",
]  # fmt: skip


@pytest.mark.parametrize("key", PATTERNS)
def test_the_rule_is_pefts(key: str) -> None:
    expected = [path for path in PATHS if get_pattern_key([key], path) == key]
    assert match_patterns([key], PATHS, where="x")[key] == expected


def test_an_anchored_path_matches_itself_only() -> None:
    hits = match_patterns(map(anchored, PATHS), PATHS, where="x")
    assert hits == {anchored(path): [path] for path in PATHS}


def test_expressions_are_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sora_cli.adapter.peft.patterns.TIME_LIMIT", 0.3)
    with pytest.raises(SoraError, match="takes more than"):
        match_patterns(["(a|aa)+$"], ["a" * 200 + "!"], where="x")
    with pytest.raises(SoraError, match="not a regular expression"):
        match_patterns(["[", "(a|aa)+$"], ["a" * 200 + "!"], where="x")
