"""Adapters of PEFT that are more than pairs of factors, merged by us and used by PEFT.

Each adapter is written by the PEFT that is installed, from a tiny model made here. Merged weights
are compared with PEFT's own merged ones; where weights are tied, whose merge is wrong there, the
merged model's logits with those of PEFT's unmerged model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from methods.keep import Keep
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.export import export_adapter
from sora_cli.adapter.reading import open_adapter
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, OK
from sora_cli.merge.merge import merge_adapter
from tests.helpers_adapters import assert_same, logits
from tests.helpers_errors import refusal
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama, tiny_vit

LLAMA = ["q_proj", "v_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """A model and what PEFT is told to adapt in it.

    Attributes:
        extra: how many parameters of the base are stored in full.
        low_rank: it can be written as a LoRA, with its rows of tokens.
        untie: the model's weights are tied, and merging takes them apart.
        close: how far merged weights may be from PEFT's; nothing: to the last bit.
        runs: outputs are compared, too; Whisper asks a convolution for its stride, which PEFT's
            layer around it does not have.
    """

    make: Callable[[], Any]
    options: dict[str, Any]
    config: Callable[..., Any] = LoraConfig
    extra: int = 0
    low_rank: bool = True
    untie: bool = False
    runs: bool = True
    close: dict[str, float] = field(default_factory=lambda: {"rtol": 0.0, "atol": 0.0})


def whisper() -> Any:
    """WhisperForConditionalGeneration: its encoder begins with two convolutions over time."""
    torch.manual_seed(0)
    sizes = {
        f"{side}_{name}": number
        for side in ("encoder", "decoder")
        for name, number in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = transformers.WhisperConfig(
        vocab_size=64, d_model=16, num_mel_bins=8, max_source_positions=8, max_target_positions=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **sizes,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TOKENS = list(range(0, 60, 2))
CONVOLUTION = "projection"
CASES = {
    "dora": Case(tiny_llama, {"target_modules": LLAMA, "use_dora": True}, low_rank=False),
    "dora-rslora": Case(
        tiny_bert,
        {"target_modules": ["query", "output.dense"], "use_dora": True, "use_rslora": True,
         "task_type": "SEQ_CLS"},
        low_rank=False, extra=2,
    ),
    "dora-conv1d": Case(  # GPT-2's: the norm goes down the columns of the stored weight
        lambda: tiny_gpt2(num_labels=3),
        {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True,
         "task_type": "SEQ_CLS"},
        low_rank=False, extra=1, close=CLOSE,
    ),
    "bias-all": Case(
        tiny_bert, {"target_modules": ["query", "value"], "bias": "all", "task_type": "SEQ_CLS"},
        extra=20,
    ),
    "bias-lora-only": Case(
        tiny_bert, {"target_modules": ["query"], "bias": "lora_only", "task_type": "SEQ_CLS"},
        extra=4,
    ),
    "embedding": Case(
        tiny_llama, {"target_modules": ["embed_tokens", "q_proj", "lm_head"], "lora_alpha": 3}
    ),
    "embedding-tied": Case(
        lambda: tiny_llama(tied=True), {"target_modules": ["embed_tokens", "q_proj"]}, untie=True
    ),
    "embedding-tied-gpt2": Case(
        tiny_gpt2, {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}, untie=True
    ),
    "embedding-dora": Case(
        tiny_llama, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        low_rank=False, close=CLOSE,
    ),
    "convolution": Case(
        tiny_vit, {"target_modules": [CONVOLUTION, "q_proj"], "modules_to_save": ["classifier"]},
        extra=2, close=CLOSE,
    ),
    "convolution-dora": Case(
        tiny_vit, {"target_modules": [CONVOLUTION, "q_proj"], "use_dora": True},
        low_rank=False, close=CLOSE,
    ),
    "convolution-1d": Case(
        whisper, {"target_modules": ["conv1", "conv2", "q_proj"]}, close=CLOSE, runs=False
    ),
    "loha": Case(tiny_llama, {"target_modules": LLAMA, "alpha": 6}, LoHaConfig),
    "loha-patterns": Case(
        tiny_bert,
        {"target_modules": ["query", "output.dense"], "task_type": "SEQ_CLS",
         "rank_pattern": {"query": 2}, "alpha_pattern": {"output.dense": 3}},
        LoHaConfig, extra=2,
    ),
    "loha-convolution": Case(
        tiny_vit, {"target_modules": [CONVOLUTION, "q_proj"]}, LoHaConfig, close=CLOSE
    ),
    "loha-convolution-tucker": Case(
        tiny_vit, {"target_modules": [CONVOLUTION], "use_effective_conv2d": True}, LoHaConfig,
        close=CLOSE,
    ),
    "loha-convolution-1d": Case(
        whisper, {"target_modules": ["conv1", "conv2"]}, LoHaConfig, close=CLOSE, runs=False
    ),
    "tokens": Case(
        tiny_llama, {"target_modules": LLAMA, "trainable_token_indices": TOKENS}
    ),
    "tokens-tied": Case(  # PEFT changes the rows of the output layer, too
        lambda: tiny_llama(tied=True),
        {"target_modules": LLAMA, "trainable_token_indices": TOKENS},
    ),
    "tokens-of-two": Case(
        tiny_llama,
        {"target_modules": LLAMA,
         "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [3, 4]}},
    ),
    "lokr": Case(tiny_llama, {"target_modules": LLAMA, "alpha": 6}, LoKrConfig, close=CLOSE),
    "lokr-both": Case(
        tiny_llama, {"target_modules": LLAMA, "decompose_both": True, "decompose_factor": 2},
        LoKrConfig, close=CLOSE,
    ),
    "lokr-convolution": Case(
        tiny_vit, {"target_modules": [CONVOLUTION, "q_proj"]}, LoKrConfig, close=CLOSE
    ),
    "lokr-convolution-tucker": Case(
        tiny_vit, {"target_modules": [CONVOLUTION], "use_effective_conv2d": True, "r": 2},
        LoKrConfig, close=CLOSE,
    ),
}  # fmt: skip


def save(case: Case, place: Path) -> tuple[Any, type[Any]]:
    """Write the base, whole, and an adapter of PEFT's with random numbers in all it trains."""
    model = case.make()
    model.save_pretrained(place / "base")
    kind = type(model)
    base = kind.from_pretrained(place / "base")
    tuned = get_peft_model(base, case.config(**{"r": 4, **case.options}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    tuned.eval().save_pretrained(place / "adapter")
    fresh = PeftModel.from_pretrained(kind.from_pretrained(place / "base"), place / "adapter")
    return fresh.eval(), kind


@pytest.mark.parametrize("name", CASES)
def test_merged_as_peft_uses_it(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    theirs, kind = save(case, tmp_path)
    if case.runs:
        expected = logits(theirs)
        with theirs.disable_adapter():
            alone = logits(theirs)
        assert (expected - alone).abs().max() > 0.01 * expected.abs().max()  # it does something
    with open_adapter(tmp_path / "adapter") as file:
        assert len(file.full) == case.extra
        merge_adapter(file, tmp_path / "out", base=str(tmp_path / "base"), untie=case.untie)
    ours = kind.from_pretrained(tmp_path / "out").eval()
    if case.runs:
        assert_same(logits(ours), expected)
    if case.untie:
        return
    merged, state = theirs.merge_and_unload().state_dict(), ours.state_dict()
    assert merged.keys() == state.keys()
    for key, tensor in merged.items():
        torch.testing.assert_close(
            state[key], tensor, **case.close, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.low_rank and case.runs])
def test_exported_as_peft_uses_it(tmp_path: Path, name: str) -> None:
    theirs, kind = save(CASES[name], tmp_path)
    expected = logits(theirs)
    export_adapter(tmp_path / "adapter", tmp_path / "out")
    base = kind.from_pretrained(tmp_path / "base")
    assert_same(logits(PeftModel.from_pretrained(base, tmp_path / "out").eval()), expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.runs])
def test_a_model_of_sounds_is_verified(tmp_path: Path, name: str) -> None:
    save(CASES[name], tmp_path)
    adapter, merged = str(tmp_path / "adapter"), str(tmp_path / "merged")
    assert run(["merge", adapter, "-o", merged]) == OK  # with its check
    assert run(["verify", adapter, merged]) == OK
    assert run(["verify", adapter, str(tmp_path / "base")]) == FAILED


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.low_rank])
def test_what_has_no_low_rank_is_refused(tmp_path: Path, name: str) -> None:
    save(CASES[name], tmp_path)
    with refusal():
        export_adapter(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with open_adapter(tmp_path / "adapter") as file:
        adapter = file
        with pytest.raises(SoraError, match="DoRA"):
            write_adapter(tmp_path / "out", adapter)


def test_bfloat16_dora_as_peft_merges_it(tmp_path: Path) -> None:
    case = Case(lambda: tiny_llama().to(torch.bfloat16), CASES["dora"].options)
    theirs, kind = save(case, tmp_path)
    with open_adapter(tmp_path / "adapter") as file:
        merge_adapter(file, tmp_path / "out", base=str(tmp_path / "base"))
    ours = kind.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    for key, tensor in theirs.merge_and_unload().state_dict().items():
        assert ours[key].dtype == tensor.dtype
        assert torch.equal(ours[key], tensor), key


def test_tied_embeddings_are_taken_apart_on_request_alone(tmp_path: Path) -> None:
    save(CASES["embedding-tied"], tmp_path)
    with (
        open_adapter(tmp_path / "adapter") as file,
        pytest.raises(SoraError, match=r"'model\.embed_tokens' shares its weight with 'lm_head"),
    ):
        merge_adapter(file, tmp_path / "out", base=str(tmp_path / "base"))


@pytest.mark.parametrize("name", ["loha", "lokr"])
def test_cut_to_a_rank_loses_what_is_said(tmp_path: Path, name: str) -> None:
    """By the singular values of PEFT's own dense updates."""
    theirs, _ = save(CASES[name], tmp_path)
    dense = {
        path.removeprefix("base_model.model."): module.get_delta_weight("default").double()
        for path, module in theirs.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    done = export_adapter(tmp_path / "adapter", tmp_path / "out", keep=Keep(rank=3))
    assert done.losses.keys() == dense.keys()
    with open_adapter(tmp_path / "out") as file:
        for path, wanted in dense.items():
            values = torch.linalg.svdvals(wanted)
            least = float(values[3:].norm() / values.norm())
            assert file.stored_ranks[path] == 3
            found = float((file.layers[path].dense() - wanted).norm() / wanted.norm())
            assert found == pytest.approx(least, rel=1e-4)
            assert done.losses[path].relative_error == pytest.approx(least, rel=1e-4)
        entry = file.meta.lineage[-1]
    whole = sum(float(d.square().sum()) for d in dense.values())
    dropped = sum(float(torch.linalg.svdvals(d)[3:].square().sum()) for d in dense.values())
    assert entry["relative_error"] == pytest.approx((dropped / whole) ** 0.5, rel=1e-4)
    assert entry["rank"] == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dora", []),
        ("bias-all", []),
        ("embedding-tied", ["--untie"]),
        ("tokens-tied", []),
        ("loha-convolution", []),
        ("lokr", []),
    ],
)
def test_the_command_verifies_what_it_merged(
    tmp_path: Path, name: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    save(CASES[name], tmp_path)
    adapter, base, out = (str(tmp_path / part) for part in ("adapter", "base", "out"))
    assert run(["merge", adapter, "-o", out, "--base", base, *options]) == 0
    said = capsys.readouterr().err
    assert "verified: 100.0" in said or "verified: 99.99" in said
    assert run(["inspect", adapter]) == 0
    told = capsys.readouterr().out
    words = {"dora": "rescaled:", "bias-all": "biases:", "embedding-tied": "embedding:",
             "tokens-tied": "tokens:"}  # fmt: skip
    assert words.get(name, "norm:") in told
    assert ("sora prune" in told) == CASES[name].low_rank  # what is refused is not proposed


def test_the_command_says_what_a_cut_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(CASES["loha"], tmp_path)
    adapter, out = str(tmp_path / "adapter"), tmp_path / "out"
    assert run(["export", adapter, "-o", str(out), "--energy", "0.9"]) == 0
    said = capsys.readouterr()
    assert "error in ||dW||" in said.out
    assert "not verified: the cut changes the outputs" in said.err
    assert (
        run(["export", adapter, "-o", str(out), "--force", "--energy", "0.9", "--rank", "1"]) == 2
    )
    assert run(["prune", adapter, "-o", str(tmp_path / "small"), "--rank", "2"]) == 0
    with open_adapter(tmp_path / "small") as file:
        assert set(file.stored_ranks.values()) == {2}


def test_tied_factors_are_refused(tmp_path: Path) -> None:
    options = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    model = tiny_llama(tied=True)
    get_peft_model(model, LoraConfig(r=2, **options)).save_pretrained(tmp_path / "adapter")
    with (
        pytest.raises(SoraError, match="ensure_weight_tying") as caught,
        open_adapter(tmp_path / "adapter"),
    ):
        pass
    assert len(caught.value.lines()) == 3


@pytest.mark.parametrize("untie", [False, True])
def test_rows_of_a_tied_layer_that_has_factors(tmp_path: Path, untie: bool) -> None:
    """PEFT puts the rows into both; weights that are written apart would hold them in one."""
    options = {"target_modules": ["lm_head", "q_proj"], "trainable_token_indices": TOKENS}
    save(Case(lambda: tiny_llama(tied=True), options), tmp_path)
    with (
        open_adapter(tmp_path / "adapter") as file,
        pytest.raises(SoraError, match=r"'lm_head' of the adapter has factors, and is tied"),
    ):
        merge_adapter(file, tmp_path / "out", base=str(tmp_path / "base"), untie=untie)
    assert not (tmp_path / "out").exists()


def test_rows_of_tied_weights_that_are_stored_twice(tmp_path: Path) -> None:
    """Both copies get them: transformers ties only what a checkpoint holds equal."""
    theirs, kind = save(CASES["tokens-tied"], tmp_path)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    with open_adapter(tmp_path / "adapter") as adapter:
        merge_adapter(adapter, tmp_path / "out", base=str(tmp_path / "base"))
    assert_same(logits(kind.from_pretrained(tmp_path / "out").eval()), logits(theirs))
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
