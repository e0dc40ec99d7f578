"""Which modules get an adapter: the rule against PEFT's own function."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

from sora_cli.adapter.peft.targets import Targets, check_targets
from sora_cli.core.errors import SoraError

PATHS = [
    *(f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1, 10) for n in "qv"),
    "model.layers.1.experts.0.up",
    "model.embed",
    "h.1.attn",
    "a.query",
    "aXquery",
    "query",
]
ALL = ["q_proj", "v_proj", "up", "embed", "attn", "query", "aXquery"]
OPTIONS: list[dict[str, Any]] = [
    {"target_modules": targets}
    for targets in (ALL, ["q_proj"], ["self_attn.q_proj"], ["roj"], ["a.query"], [], "", ".*",
    "query",
                    r".*\.(q|v)_proj", "model", "(?i)QUERY", ".*query", PATHS, ["", "."])
] + [
    {"target_modules": ALL, **more}
    for more in (
        {"exclude_modules": ["query"]}, {"exclude_modules": r".*\.1\..*"}, {"exclude_modules": ""},
        {"exclude_modules": ["proj", "layers"]}, {"modules_to_save": ["layers"]},
        {"modules_to_save": ["query", "embed"]}, {"modules_to_save": ["que.*"]},
        {"modules_to_save": ["1|0"]}, {"layers_to_transform": 1}, {"layers_to_transform": [0, 10]},
        {"layers_to_transform": []}, {"layers_to_transform": 0, "layers_pattern": "experts"},
        {"layers_to_transform": [1], "layers_pattern": ["layers", "h"]},
        {"layers_to_transform": [1], "layers_pattern": ["h|x", "layers"]},
        {"layers_to_transform": [1, 0], "layers_pattern": "layers|experts"},
        {"layers_to_transform": [1], "layers_pattern": []},
        {"layers_to_transform": [1], "layers_pattern": ""},
        {"layers_to_transform": [1], "layers_pattern": "l.*"},
    )
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_rule_is_pefts(options: dict[str, Any]) -> None:
    config, targets = LoraConfig(**options), Targets(**options)
    found = {path: check_target_module_exists(config, path) for path in PATHS}
    adapted = [path for path, hit in found.items() if hit and not isinstance(hit, _ExcludedModule)]
    check_targets(targets, adapted, "x")
    left = [path for path in PATHS if path not in adapted]
    if left:
        with pytest.raises(SoraError, match="so PEFT would ignore") as caught:
            check_targets(targets, PATHS, "x")
        more = f" and {len(left) - 3} more," if len(left) > 3 else ","
        assert f" {', '.join(left[:3])}{more}" in caught.value.what


def test_all_linear_is_not_looked_into() -> None:
    for word in ("all-linear", "ALL-linear"):
        check_targets(Targets(target_modules=word), PATHS, "x")
    with pytest.raises(SoraError, match="exclude_modules has query, so"):
        check_targets(Targets(target_modules="all-linear", exclude_modules="query"), PATHS, "x")


def test_the_first_few_are_named() -> None:
    with pytest.raises(SoraError) as caught:
        check_targets(Targets(target_modules=["q_proj"]), PATHS, "config.json")
    assert "model.layers.0.self_attn.v_proj, model.layers.1.self_attn" in caught.value.what
    assert " and 6 more, so PEFT" in caught.value.what
    assert "aXquery" not in caught.value.what
    assert caught.value.where == "config.json"


def test_an_expression_that_takes_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sora_cli.adapter.peft.patterns.TIME_LIMIT", 0.1)
    for options in (
        {"target_modules": "(a+)+"},
        {"target_modules": "all-linear", "exclude_modules": "(a+)+"},
        {"target_modules": "all-linear", "modules_to_save": ["(a+)+"]},
        {"target_modules": ["a"], "layers_to_transform": 1, "layers_pattern": "(a+)+"},
    ):
        with pytest.raises(SoraError, match=r"takes more than 0\.1 s"):
            check_targets(Targets(**options), ["a" * 60 + "!"], "x")
