"""`sora methods`."""

import json

from methods.registry import builtin_names, config_class
from sora_cli.app import run

BUILT_IN = builtin_names()


def test_every_option_is_listed_with_default_and_meaning(capsys):
    assert run(["methods"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    assert [block.split(":")[0] for block in blocks] == BUILT_IN
    for block, name in zip(blocks, BUILT_IN, strict=True):
        assert "arXiv" in block.splitlines()[0]
        lines = block.splitlines()[1:]
        if not config_class(name).low_rank:
            assert "a baseline" in lines.pop()
        vary = config_class(name).variable_options
        if vary:
            assert (
                lines.pop()
                == f"  options that may vary along a path (sora path): {', '.join(vary)}"
            )
        assert [line.split()[0] for line in lines] == list(config_class(name).model_fields)


def test_json(capsys):
    assert run(["methods", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)
    assert [m["low_rank"] for m in methods] == [config_class(n).low_rank for n in BUILT_IN]
    sora = next(m for m in methods if m["name"] == "sora")
    assert sora["adapts_rank"]
    assert sora["may_vary"] == ["threshold", "l1", "target_r"]
    threshold = next(option for option in sora["options"] if option["name"] == "threshold")
    assert threshold["default"] == 3e-4
    assert threshold["type"] == "a number at least 0 or null"
    assert threshold["description"]
