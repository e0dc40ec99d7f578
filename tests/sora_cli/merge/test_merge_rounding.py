"""The part of an update that is left in merged weights of few bits, and the ways out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference, read_json
from sora_cli.adapter.survival import Overlap, Survival
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED
from sora_cli.merge import blocks as merge_blocks
from sora_cli.merge import write as merge_write
from sora_cli.merge.merge import MERGED_KEY, Merged, merge_adapter
from sora_cli.merge.rounding import (
    Storing,
    random_bits,
    round_stochastically,
    shown_survival,
)
from sora_cli.model.fingerprint import fingerprint
from tests.golden import NUMBER, told
from tests.helpers_adapters import save_backbone
from tests.helpers_errors import refused
from tests.helpers_models import tiny_gpt2, tiny_llama

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def _adapter(model: Any, base: Path, ratio: float) -> Adapter:
    """An adapter of the blocks' layers with |dW| = ratio |W| in each."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for path, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and path != "lm_head":
            weight = module.weight.detach().float()
            n_out, n_in = weight.shape if type(module).__name__ == "Linear" else weight.T.shape
            a = torch.randn(3, n_in, generator=generator)
            b = torch.randn(n_out, 3, generator=generator)
            layers[path] = LowRankFactors(a, b * ratio * weight.norm() / (b @ a).norm())
    reference = BaseReference(str(base), str(base), None, fingerprint(base))
    conv = type(model).__name__.startswith("GPT2")
    return Adapter.of(layers, {}, (), "CAUSAL_LM", reference, fan_in_fan_out=conv)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """The same tiny Llama in three dtypes; that of bfloat16 is in shards."""
    folder = tmp_path_factory.mktemp("bases")
    made = {}
    for dtype in DTYPES.values():
        model = tiny_llama().to(getattr(torch, dtype))
        shard = "20KB" if dtype == "bfloat16" else "1GB"
        model.save_pretrained(folder / dtype, max_shard_size=shard)
        made[dtype] = model, folder / dtype
    return made


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def _direct(adapter: Adapter, base: Path, out: Path) -> dict[str, tuple[float, float]]:
    """<dW', dW> and <dW, dW> of each layer, from the files, in float64."""
    before, after = _tensors(base), _tensors(out)
    sums = {}
    for path, f in adapter.layers.items():
        change = after[f"{path}.weight"].double() - before[f"{path}.weight"].double()
        update = f.B.double() @ f.A.double()
        update = update.T if adapter.fan_in_fan_out else update
        sums[path] = float((change * update).sum()), float(update.square().sum())
    return sums


def _assert_measured(merged: Merged, sums: dict[str, tuple[float, float]]) -> float:
    assert merged.survival is not None
    assert merged.survival.layers.keys() == sums.keys()
    for path, (along, update) in sums.items():
        assert merged.survival.layers[path].share == pytest.approx(along / update, abs=1e-4)
    share = sum(s[0] for s in sums.values()) / sum(s[1] for s in sums.values())
    assert merged.survival.all.share == merged.survival.share == pytest.approx(share, abs=1e-5)
    return share


@pytest.mark.parametrize(
    ("ratio", "low", "high"),
    [(1e-4, 0.02, 0.12), (4e-4, 0.18, 0.32), (1e-3, 0.45, 0.65), (3e-3, 0.87, 0.97)],
)
def test_the_share_that_survives_bfloat16(
    tmp_path: Path, llamas: Any, ratio: float, low: float, high: float
) -> None:
    model, base = llamas["bfloat16"]
    adapter = _adapter(model, base, ratio)
    merged = merge_adapter(adapter, tmp_path / "out", storing=Storing(accept_loss=True))
    share = _assert_measured(merged, _direct(adapter, base, tmp_path / "out"))
    assert low < share < high
    record = read_json(tmp_path / "out" / "sora_merge.json")
    assert record["share"] == pytest.approx(share, abs=1e-4)
    assert record["modules"].keys() == adapter.layers.keys()
    (entry,) = read_json(tmp_path / "out" / "config.json")[MERGED_KEY]
    assert entry["share"] == record["share"]
    assert f"hold {share:.1%} of the adapter's update" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_share_of_transposed_weights(tmp_path: Path, rounding: str) -> None:
    model = tiny_gpt2().half()
    base = save_backbone(model, tmp_path / "base")
    adapter = _adapter(model, base, 3e-4)
    storing = Storing(rounding=rounding, accept_loss=True)
    merged = merge_adapter(adapter, tmp_path / "out", storing=storing)
    _assert_measured(merged, _direct(adapter, base, tmp_path / "out"))


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_another_dtype(tmp_path: Path, llamas: Any, dtype: str) -> None:
    """All tensors have it, and the configuration; float32 keeps the whole update."""
    model, base = llamas["bfloat16" if dtype == "float32" else "float32"]
    adapter = _adapter(model, base, 1e-3)
    merged = merge_adapter(adapter, tmp_path / "out", storing=Storing(dtype, accept_loss=True))
    share = _assert_measured(merged, _direct(adapter, base, tmp_path / "out"))
    assert share == pytest.approx(1, abs=1e-5 if dtype == "float32" else 0.2)
    assert merged.dtype == dtype
    assert merged.converted == 7
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert ours.config.dtype == ours.dtype == getattr(torch, dtype)
    before, after = _tensors(base), _tensors(tmp_path / "out")
    for name, tensor in after.items():
        expected, path = before[name].float(), name.removesuffix(".weight")
        if path in adapter.layers:
            expected = expected + adapter.layers[path].B @ adapter.layers[path].A
        assert torch.equal(tensor, expected.to(getattr(torch, dtype))), name
        assert torch.equal(ours.state_dict()[name], tensor)


def test_numbers_that_the_other_dtype_does_not_hold(tmp_path: Path) -> None:
    model = tiny_llama()
    model.model.embed_tokens.weight.data[3] = 1e5
    base = save_backbone(model, tmp_path / "base")
    adapter = _adapter(model, base, 0.1)
    with pytest.raises(SoraError, match=r"embed_tokens.*too large for float16"):
        merge_adapter(adapter, tmp_path / "out", storing=Storing("float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_too_little_is_refused_and_nothing_is_written(
    tmp_path: Path, llamas: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, which names the ways out; --accept-loss says the numbers and ends with 0."""
    model, base = llamas["bfloat16"]
    write_adapter(tmp_path / "adapter", _adapter(model, base, 4e-4))
    words = ["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), "--no-verify"]
    refused(capsys, *words, "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert run([*words, "--accept-loss"]) == 0
    told(capsys.readouterr().err, hide=f"{NUMBER}( [kMG]B)?")  # memory is of this process


def test_an_accepted_loss_is_no_failure(
    tmp_path: Path,
    llamas: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, base = llamas["bfloat16"]
    write_adapter(tmp_path / "adapter", _adapter(model, base, 2e-3))
    words = ["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), "--force"]
    monkeypatch.setattr("sora_cli.verify.self_check.self_check", lambda *_, **__: FAILED)
    assert run(words) == 1
    assert "warning: stored as bfloat16" in capsys.readouterr().err
    assert run([*words, "--accept-loss"]) == 0
    assert "accepted" in capsys.readouterr().err
    assert run([*words, "--accept-loss", "--dtype", "float32"]) == 1


@pytest.mark.parametrize("more", [
["--dtype", "int8"],
["--round", "up"],
["--seed", "3"],
], ids=" ".join)  # fmt: skip
def test_options_that_cannot_be(
    capsys: pytest.CaptureFixture[str],
    more: list[str],
) -> None:
    refused(capsys, "merge", "adapter", "-o", "out", *more)


def test_stochastic_rounding_is_the_same_each_time(
    tmp_path: Path, llamas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many threads and blocks there are; another seed is another rounding."""
    model, base = llamas["bfloat16"]
    adapter = _adapter(model, base, 4e-4)

    def made(name: str, seed: int) -> dict[str, Tensor]:
        storing = Storing(rounding="stochastic", seed=seed, accept_loss=True)
        merged = merge_adapter(adapter, tmp_path / name, storing=storing)
        assert merged.survival is not None
        assert merged.survival.share == pytest.approx(1, abs=0.15)
        assert merged.survival.all.noise > 1
        return _tensors(tmp_path / name)

    one, other = made("one", 0), made("other", 1)
    monkeypatch.setattr(merge_write, "threads", lambda: 1)
    monkeypatch.setattr(merge_blocks, "_BLOCK", 300)
    again = made("again", 0)
    assert all(torch.equal(again[name], tensor) for name, tensor in one.items())
    assert not all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_noise_larger_than_the_update_is_a_warning_with_a_way_to_test_it(
    tmp_path: Path, llamas: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, base = llamas["bfloat16"]
    write_adapter(tmp_path / "adapter", _adapter(model, base, 4e-4))
    words = ["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), "--no-verify"]
    assert run([*words, "--round", "stochastic"]) == 0
    told(capsys.readouterr().err, hide=f"{NUMBER}( [kMG]B)?")


@pytest.mark.parametrize(
    ("share", "noise", "said"),
    [
        (0.992, 0.118, "hold 99.2% of the adapter's update; rounding noise: 11.8% of its size"),
        (1.0001, 0.5, "hold 100.0% of the adapter's update; rounding noise: 50.0% of its size"),
        (1.001, 4.507, "hold the adapter's update at 100.1% of its strength; rounding noise: "
                       "450.7% of its size, larger than the update itself"),
    ],
)  # fmt: skip
def test_what_share_and_noise_mean(share: float, noise: float, said: str) -> None:
    survival = Survival({"a": Overlap(1, share, share**2 + noise**2)}, {})
    assert shown_survival(survival, "q8_0") == f"stored as q8_0, the merged weights {said}"
    assert survival.is_lossy is (noise > 1)


def test_no_update_is_said_to_be_none() -> None:
    nothing = Survival({"a": Overlap()}, {})
    assert (nothing.share, nothing.all.noise, nothing.table()) == (1, 0, {})
    assert shown_survival(nothing, "bfloat16") == "the adapter's layers change nothing"


def test_random_bits_belong_to_their_place() -> None:
    whole = random_bits(0, "w", 0, 500)
    for start in (0, 1, 15, 16, 37):
        assert np.array_equal(random_bits(0, "w", start, 100), whole[start : start + 100])
    assert not np.array_equal(random_bits(0, "v", 0, 500), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_has_no_bias(dtype: torch.dtype) -> None:
    """Also for zero, negative numbers, powers of two and numbers below the normal ones."""
    draws = 40_000
    for value in (0.0, 0.3, -0.3, 1.0, 1.001, 1.9999, -7.77, 3.1e-5, -4.4e-7):
        exact = torch.tensor(value)
        numbers = exact.repeat(draws)
        round_stochastically(numbers, dtype, seed=0, name="w", start=0)
        found = numbers.unique()
        assert torch.equal(numbers, numbers.to(dtype).float())
        step = float(found[-1] - found[0])
        assert len(found) == (1 if float(exact.to(dtype)) == value or step == 0 else 2)
        assert found[0] <= exact <= found[-1]
        assert abs(float(numbers.double().mean()) - float(exact)) <= 0.01 * step


def test_what_is_trained_in_full_is_measured_too(tmp_path: Path, llamas: Any) -> None:
    """Against what the base had in its place: embeddings that were trained on, in this case."""
    model, base = llamas["bfloat16"]
    adapter = _adapter(model, base, 0.1)
    name = "model.embed_tokens.weight"
    before = model.get_parameter(name).detach().float()
    small = 3e-4 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0)) * before
    full = Adapter.of(adapter.layers, {name: before + small}, ("model.embed_tokens",), "CAUSAL_LM",
                   adapter.base)  # fmt: skip
    with pytest.raises(SoraError, match=r"% of the parts trained in full"):
        merge_adapter(full, tmp_path / "out")
    for rounding in ("nearest", "stochastic"):
        storing = Storing(rounding=rounding, accept_loss=True)
        merged = merge_adapter(full, tmp_path / rounding, storing=storing)
        after = _tensors(tmp_path / rounding)[name].double()
        expected = ((after - before) * small).sum() / small.double().square().sum()
        assert merged.survival is not None
        assert merged.survival.heads[name].share == pytest.approx(float(expected), abs=1e-3)
        assert merged.survival.all.share > 0.99
    merged = merge_adapter(full, tmp_path / "wide", storing=Storing("float32"))
    assert torch.equal(_tensors(tmp_path / "wide")[name], before + small)
