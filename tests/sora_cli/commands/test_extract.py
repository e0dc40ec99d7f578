"""`sora extract` through the app: merged back it is the model, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from tests.helpers_adapters import assert_same, logits
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.helpers_tuned import change, loaded, save_pair
from tests.matrix import rest_is_long

WEIGHTS = r"(proj|c_attn|c_fc|dense|query|key|value)\.weight$"
NORMS = r"(proj|c_attn|c_fc)\.weight$|norm|ln_"


def _extract(capsys: Any, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["extract", *words, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.parametrize("kind", rest_is_long(["llama-tied", "llama", "gpt2"]))
def test_full_rank_merged_back_is_the_model(tmp_path: Path, capsys: Any, kind: str) -> None:
    base = {"llama": tiny_llama, "gpt2": tiny_gpt2, "llama-tied": lambda: tiny_llama(tied=True)}
    model = base[kind]()
    tuned = change(model, NORMS)
    pair = save_pair(model, tuned, tmp_path)
    out, merged = tmp_path / "out", tmp_path / "merged"
    facts = _extract(capsys, pair[0], "--base", pair[1], "-o", str(out), "--rank", "1000")
    assert facts["relative_error"] < 2e-6
    assert all(module["relative_error"] < 2e-6 for module in facts["modules"].values())
    assert any("norm" in name or "ln_" in name for name in facts["in_full"])
    assert run(["merge", str(out), "-o", str(merged), "--no-verify"]) == 0
    back, meant = (m.state_dict() for m in (loaded(model, merged), tuned))
    for name, tensor in meant.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=3e-7)
    assert_same(logits(loaded(model, merged)), logits(tuned))
    for command in ("inspect", "verify"):
        assert run([command, str(out)]) == 0
    assert run(["prune", str(out), "-o", str(tmp_path / "small"), "--rank", "2"]) == 0


def test_a_low_rank_difference_is_found_and_cut_over_all_layers(
    tmp_path: Path, capsys: Any
) -> None:
    model = tiny_llama()
    tuned = change(change(model, r"q_proj\.weight", rank=6), r"k_proj\.weight", rank=1)
    pair = save_pair(model, tuned, tmp_path)
    options = (pair[0], "--base", pair[1], "--mean-rank", "3", "-o", str(tmp_path / "out"))
    facts = _extract(capsys, *options)
    ranks = {name: module["rank"] for name, module in facts["modules"].items()}
    assert sum(ranks.values()) <= 12
    assert max(ranks[n] for n in ranks if "q_proj" in n) > 3  # not 3 everywhere
    # the stated error is the distance of the weights
    layers = read_adapter(tmp_path / "out").layers
    missing = whole = 0.0
    for path in facts["modules"]:
        new, old = (m.get_submodule(path).weight.detach().double() for m in (tuned, model))
        kept = layers[path].dense() if path in layers else 0.0
        missing += float((new - old - kept).square().sum())
        whole += float((new - old).square().sum())
    assert facts["relative_error"] == pytest.approx((missing / whole) ** 0.5, rel=1e-4)
    assert facts["relative_error"] > 0.01
    lineage = read_adapter(tmp_path / "out").meta.lineage
    assert lineage[0]["command"] == "extract"
    assert lineage[0]["relative_error"] == facts["relative_error"]


def test_energy_keeps_that_share_of_each_layer(tmp_path: Path, capsys: Any) -> None:
    model = tiny_llama()
    pair = save_pair(model, change(model, WEIGHTS), tmp_path)
    options = (pair[0], "--base", pair[1], "--energy", "0.8", "-o", str(tmp_path / "out"))
    facts = _extract(capsys, *options, "--dtype", "bfloat16")
    for module in facts["modules"].values():
        assert module["relative_error"] ** 2 <= 0.2 + 1e-4
        assert 1 <= module["rank"] < 32


def test_max_params_is_kept(tmp_path: Path, capsys: Any) -> None:
    model = tiny_llama()
    pair = save_pair(model, change(model, WEIGHTS), tmp_path)
    options = (pair[0], "--base", pair[1], "-o", str(tmp_path / "out"), "--max-params")
    assert _extract(capsys, *options, "2000")["parameters"] <= 2000
    refused(capsys, "extract", *options, "3", "--force")


def test_a_new_head_is_stored_in_full(tmp_path: Path, capsys: Any) -> None:
    """The base has no classifier; its numbers come with the adapter."""
    model = tiny_bert()
    tuned = change(model, r"(query|value)\.weight|classifier|pooler")
    model.base_model.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    out, merged = tmp_path / "out", tmp_path / "merged"
    words = (str(tmp_path / "tuned"), "--base", str(tmp_path / "base"), "-o", str(out))
    facts = _extract(capsys, *words, "--rank", "99")
    assert facts["in_full"] == ["classifier"]
    assert facts["biases"] == ["bert.pooler.dense.bias"]
    assert read_adapter(out).meta.num_labels == 3
    assert run(["merge", str(out), "-o", str(merged), "--no-verify"]) == 0
    assert_same(logits(loaded(model, merged)), logits(tuned))


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_stored_in_full_or_factored(tmp_path: Path, capsys: Any, tied: bool) -> None:
    """An untied output layer is a linear layer; what is tied is stored in full, under each name."""
    model = tiny_llama(tied=tied)
    tuned = change(model, r"q_proj\.weight|embed_tokens|lm_head")
    pair = save_pair(model, tuned, tmp_path)
    out, merged = tmp_path / "out", tmp_path / "merged"
    facts = _extract(capsys, pair[0], "--base", pair[1], "-o", str(out), "--rank", "99")
    assert ("lm_head" in facts["modules"]) is not tied
    assert set(facts["in_full"]) == {"model.embed_tokens", *(["lm_head"] if tied else [])}
    assert facts["relative_error"] < 2e-6
    assert run(["merge", str(out), "-o", str(merged), "--no-verify"]) == 0
    assert_same(logits(loaded(model, merged)), logits(tuned))


def test_biases_are_kept_or_counted(tmp_path: Path, capsys: Any) -> None:
    model = tiny_bert()
    tuned = change(model, r"query\.(weight|bias)|key\.bias")
    pair = save_pair(model, tuned, tmp_path)
    out, merged = tmp_path / "out", tmp_path / "merged"
    words = (pair[0], "--base", pair[1], "-o", str(out), "--rank", "99")
    facts = _extract(capsys, *words)
    assert len(facts["biases"]) == 4
    assert facts["relative_error"] < 2e-6
    assert run(["merge", str(out), "-o", str(merged), "--no-verify"]) == 0
    assert_same(logits(loaded(model, merged)), logits(tuned))
    facts = _extract(capsys, *words, "--no-biases", "--force")
    assert len(facts["left_out"]) == 4
    biases = weights = 0.0
    for name, parameter in tuned.named_parameters():
        before = model.get_parameter(name)
        moved = float((parameter - before).detach().double().square().sum())
        biases += moved * name.endswith("bias")
        weights += moved * name.endswith("weight")
    assert facts["relative_error"] == pytest.approx((biases / (biases + weights)) ** 0.5, rel=1e-4)


def test_shards_and_16_bits(tmp_path: Path, capsys: Any) -> None:
    model = tiny_llama().bfloat16()
    tuned = change(model, WEIGHTS)
    pair = save_pair(model, tuned, tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 2
    out, merged = tmp_path / "out", tmp_path / "merged"
    _extract(capsys, pair[0], "--base", pair[1], "-o", str(out), "--rank", "99")
    assert run(["merge", str(out), "-o", str(merged), "--no-verify"]) == 0
    back = loaded(model, merged).state_dict()
    for name, tensor in tuned.state_dict().items():
        # the factors are rounded, so a number that lies between two of bfloat16 may take the other
        torch.testing.assert_close(back[name], tensor, rtol=2**-7, atol=1e-6, msg=name)
        assert (back[name] != tensor).float().mean() < 0.01, name


def test_what_does_not_belong_together(tmp_path: Path, capsys: Any) -> None:
    model = tiny_llama()
    models = {
        "base": model,
        "same": model,
        "gpt2": tiny_gpt2(),
        "norms": change(model, "norm"),
        "tied": tiny_llama(tied=True),
    }
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 3})
    models["deeper"] = type(model)(config)
    config = type(model.config)(**{**model.config.to_dict(), "vocab_size": 66})
    models["vocabulary"] = type(model)(config)
    for name, each in models.items():
        each.save_pretrained(tmp_path / name)
    for name in ("same", "gpt2", "norms", "tied", "deeper", "vocabulary"):
        words = (str(tmp_path / name), "--base", str(tmp_path / "base"), "--rank", "4")
        refused(capsys, "extract", *words, "-o", tmp_path / "out")
    words = (str(tmp_path / "base"), "--base", str(tmp_path / "deeper"), "--rank", "4")
    refused(capsys, "extract", *words, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))  # nothing is left behind
