"""Options that a configuration of PEFT's sets."""

from typing import Any

import pytest
from peft import LoraConfig

from sora_cli.adapter.peft.config import LORA, parse_config

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 8, "target_modules": ["query"]}


@pytest.mark.versions
def test_all_switches_of_pefts_are_known() -> None:
    """A new one must be looked at: what does it do to the weights?"""
    config = LoraConfig(r=8, target_modules=["query"]).to_dict()
    switches = {key: True for key, value in config.items() if value is False}
    refused = {"use_qalora", "lora_bias", "use_bdlora"}
    known = {key: value for key, value in switches.items() if key not in refused}
    assert parse_config({**PLAIN, **known}, "here", (LORA,)).unknown_options == ()


def test_a_switch_that_is_not_known_is_told() -> None:
    config = parse_config(
        {**PLAIN, "use_magic": True, "use_other": False, "of": {}}, "here", (LORA,)
    )
    assert config.unknown_options == ("use_magic",)
    assert config.prepare(["layer.query"], "here") == (
        "adapter_config.json sets use_magic, an unknown option: it is ignored",
    )
