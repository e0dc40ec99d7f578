"""The rule of thumb for the learning rate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from methods.configs import LoraConfig
from methods.registry import config_class, method_names
from sora_cli.run.rates.rule import parameters_of, rule_of_thumb


class Config(SimpleNamespace):
    """A model's configuration."""

    def get_text_config(self) -> Config:
        return self


BERT = Config(hidden_size=768, num_hidden_layers=12, vocab_size=30522)


def rate(config: Any = BERT, method: str = "lora") -> float:
    return rule_of_thumb(config, config_class(method))[0]


def test_parameters_of_bert() -> None:
    """BERT-base has 110 million."""
    assert parameters_of(BERT) == 12 * 12 * 768**2 + 30522 * 768
    assert parameters_of(Config()) == 0


@pytest.mark.parametrize(
    ("width", "expected"),
    [(384, 1e-3), (64, 4e-3), (16, 4e-3), (576, 7.3e-4), (4096, 1.6e-4), (8192, 9.2e-5)],
)
def test_rates_fall_with_the_width(width: int, expected: float) -> None:
    config = Config(hidden_size=width)
    assert rate(config) == expected
    assert rule_of_thumb(config, LoraConfig)[1] == f"for a model of width {width}"


def test_a_model_that_does_not_tell_its_width() -> None:
    assert rule_of_thumb(Config(), LoraConfig) == (5e-4, "the model's width is not known")


def test_the_factor_belongs_to_the_method() -> None:
    rates = {name: rate(method=name) for name in method_names()}
    expected = dict.fromkeys(rates, 5.8e-4)
    assert rates == expected | {"adalora": 5.8e-3, "head": 1.9e-3, "full": 5.8e-5}


def test_a_method_of_ones_own_says_its_factor() -> None:
    class Steep(LoraConfig):
        rate_factor = 0.7

    found, reason = rule_of_thumb(BERT, Steep())
    assert found == 4.1e-4
    assert reason == "for a model of width 768, times 0.7 for this method"
