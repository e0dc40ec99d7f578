"""Adapters that `extract` and `combine` write, held against PEFT: its loading and its own sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.merge_utils import ties as peft_ties

from methods.combining import ties
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from tests.helpers_adapters import adapt, assert_same, logits, save_backbone
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.helpers_tuned import change, loaded, save_pair

EVERYTHING = r"(proj|c_attn|c_fc)\.(weight|bias)$|norm|ln_|embed_tokens|wte|lm_head"


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "bert"])
def test_peft_on_the_base_gives_the_fine_tuned_model(tmp_path: Path, kind: str) -> None:
    """Norms and embeddings, tied ones too, are where PEFT loads them."""
    base: Any = {
        "llama": tiny_llama,
        "llama-tied": lambda: tiny_llama(tied=True),
        "gpt2": tiny_gpt2,
        "bert": tiny_bert,
    }[kind]()
    pattern = EVERYTHING if kind != "bert" else r"(query|dense)\.(weight|bias)|LayerNorm|classifier"
    tuned = change(base, pattern)
    pair = save_pair(base, tuned, tmp_path)
    out = tmp_path / "out"
    assert run(["extract", pair[0], "--base", pair[1], "-o", str(out), "--rank", "99"]) == 0
    model = PeftModel.from_pretrained(loaded(base, tmp_path / "base"), str(out))
    assert_same(logits(model.eval()), logits(tuned))
    assert not torch.allclose(logits(base), logits(tuned), atol=1e-2)


def test_a_sum_is_peft_s_own(tmp_path: Path) -> None:
    base = tiny_llama()
    place = save_backbone(base, tmp_path / "base")
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / name, adapt(tiny_llama(), place, ranks="full", seed=seed))
    a, b, out = (str(tmp_path / name) for name in ("a", "b", "out"))
    assert run(["combine", a, b, "-o", out, "--weights", "0.7,0.2"]) == 0
    theirs = PeftModel.from_pretrained(loaded(base, place), a, adapter_name="a")
    theirs.load_adapter(b, adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.2], "both", combination_type="cat")
    theirs.set_adapter("both")
    ours = PeftModel.from_pretrained(loaded(base, place), out)
    assert_same(logits(ours.eval()), logits(theirs.eval()))


def test_ties_is_peft_s_own() -> None:
    g = torch.Generator().manual_seed(0)
    updates = [torch.randn(20, 30, generator=g) for _ in range(3)]
    theirs = peft_ties(updates, torch.ones(3), density=0.3)
    torch.testing.assert_close(ties(updates, [1 / 3] * 3, 0.3), theirs)


def test_ties_at_full_rank_is_peft_s_own(tmp_path: Path) -> None:
    """With equal weights: PEFT's divide by a count, ours by the sum of weights that agree."""
    base = tiny_llama()
    place = save_backbone(base, tmp_path / "base")
    for seed, name in enumerate("abc"):
        write_adapter(tmp_path / name, adapt(tiny_llama(), place, ranks="full", seed=seed))
    out, places = tmp_path / "out", [str(tmp_path / name) for name in "abc"]
    words = ["--method", "ties", "--density", "0.25", "--energy", "1"]
    assert run(["combine", *places, "-o", str(out), *words]) == 0
    theirs = PeftModel.from_pretrained(loaded(base, place), places[0], adapter_name="a")
    for name, directory in zip("bc", places[1:], strict=True):
        theirs.load_adapter(directory, adapter_name=name)
    theirs.add_weighted_adapter(
        ["a", "b", "c"], [1.0] * 3, "all", combination_type="ties_svd", density=0.25, svd_rank=32,
        svd_full_matrices=False,
    )  # fmt: skip
    layers = read_adapter(out).layers
    wanted = {
        name.removeprefix("base_model.model."): module.get_delta_weight("all")
        for name, module in theirs.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert layers.keys() == wanted.keys()
    for path, update in wanted.items():
        found = layers[path].dense()
        worst = (found - update).abs().max() / update.abs().max()
        assert worst <= 1e-5, f"{path}: off by {worst:.1e}"
