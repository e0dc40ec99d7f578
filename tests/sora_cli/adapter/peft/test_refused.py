"""The table of what PEFT does not load against the PEFT that is installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from sora_cli.adapter.peft import refused as rules
from sora_cli.adapter.peft.refused import COMPARED, REFUSED, refused, refused_by_peft, refused_today
from tests.present import present

OTHERS = ("q_proj", "k_proj", "o_proj", "in_proj", "x_proj", "dt_proj", "dense", "gate", "fc1")
NAMES = sorted({*OTHERS, *(name for names in REFUSED.values() for name in names)})
PATHS = [f"model.layers.{i}.mlp.{name}" for i in range(2) for name in NAMES]
PATHS.append("model.layers.0.mlp.experts.3.gate_proj")  # as it was before transformers 5


def _compare(model_types: Iterable[str]) -> None:
    for model_type in model_types:
        asked = present(refused_by_peft(model_type, PATHS))
        assert set(refused(model_type, PATHS)) == set(asked), model_type


def test_the_table_is_what_peft_does() -> None:
    _compare([*REFUSED, "bert", "llama", "granitemoe", "qwen2_moe", "zamba2", "bamba"])


@pytest.mark.long
def test_no_other_kind_of_model_belongs_into_the_table() -> None:
    _compare(CONFIG_MAPPING_NAMES)


def test_the_versions_compared_are_those_installed() -> None:
    """After an update: run the long test above, correct the table, then these versions."""
    for name, start in COMPARED.items():
        assert version(name).startswith(start)


def test_peft_is_asked_where_it_may_know_more(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ["layers.0.out_proj", "layers.0.in_proj"]
    asked: list[str] = []

    def ask(model_type: str, paths: tuple[str, ...]) -> dict[str, str]:
        asked.append(model_type)
        return {paths[0]: "refused"}

    monkeypatch.setattr(rules, "refused_by_peft", ask)
    assert refused_today("llama", paths) == {}
    assert asked == []  # PEFT takes seconds to import
    assert refused_today("mamba2", paths) == {paths[0]: "refused"}
    monkeypatch.setitem(COMPARED, "peft", "0.1.")
    assert refused_today("llama", paths) == {paths[0]: "refused"}
    assert asked == ["mamba2", "llama"]


def test_the_table_serves_where_peft_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "installed", lambda _: None)
    assert refused_today("mamba2", ["a.out_proj", "a.in_proj"]) == {
        "a.out_proj": "refused by PEFT in mamba2 models"
    }
