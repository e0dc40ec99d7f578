"""The rule of thumb for the learning rate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from methods.configs import LoraConfig
from methods.registry import config_class, method_names
from sora_cli.recipe.families import TaskOptions, options_class, task_names
from sora_cli.run.rates.rule import parameters_of, rule_of_thumb


class Config(SimpleNamespace):
    """A model's configuration."""

    def get_text_config(self) -> Config:
        return self


BERT = Config(hidden_size=768, num_hidden_layers=12, vocab_size=30522)


def rate(config: Any = BERT, task: str = "sequence-classification", method: str = "lora") -> float:
    return rule_of_thumb(config, options_class(task), config_class(method))[0]


def test_parameters_of_bert() -> None:
    """BERT-base has 110 million."""
    assert parameters_of(BERT) == 12 * 12 * 768**2 + 30522 * 768
    assert parameters_of(Config()) == 0


@pytest.mark.parametrize(
    ("parameters", "expected"), [(59e6, 1e-3), (60e6, 5e-4), (9.9e8, 5e-4), (1e9, 2e-4)]
)
def test_rates_fall_with_the_size(parameters: float, expected: float) -> None:
    config = Config(hidden_size=1, vocab_size=int(parameters))
    assert rate(config) == expected


def test_some_families_have_their_own() -> None:
    own = [name for name in task_names() if rate(task=name) == 1e-3]
    assert own == ["seq2seq", "image-classification", "image-text"]
    assert rate(task="causal-lm") == 5e-4


def test_the_factor_belongs_to_the_method() -> None:
    rates = {name: rate(method=name) for name in method_names()}
    expected = dict.fromkeys(rates, 5e-4)
    assert rates == expected | {"adalora": 1.65e-3, "head": 1.65e-3, "full": 5e-5}


def test_a_method_of_ones_own_says_its_factor() -> None:
    class Steep(LoraConfig):
        rate_factor = 0.7

    found, reason = rule_of_thumb(BERT, TaskOptions, Steep())
    assert found == 3.5e-4
    assert reason == "for models below 1,000 million parameters, times 0.7 for this method"
