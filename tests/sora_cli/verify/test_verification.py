"""The parts of verifying: inputs, measures, tolerance, memory, and the check that others run."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.classes import auto_class_for, auto_class_of, number_of_labels
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.parts.low_rank import StoredPair
from sora_cli.app import run
from sora_cli.core import environment as memory
from sora_cli.core.environment import free_memory
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.report import RunReport
from sora_cli.verify import self_check as checking
from sora_cli.verify.difference import compare
from sora_cli.verify.outputs import run_model
from sora_cli.verify.probes import Probe, make_probe
from sora_cli.verify.reload import reload_outputs
from sora_cli.verify.run_check import announcement
from sora_cli.verify.self_check import self_check
from sora_cli.verify.subjects import find_subjects, float32_bytes
from sora_cli.verify.verification import tolerance_for, verify
from tests.helpers_adapters import adapt, save_backbone
from tests.helpers_errors import refusal
from tests.helpers_models import (
    VOCABULARY,
    tiny_bert,
    tiny_deberta,
    tiny_gpt2,
    tiny_llama,
    tiny_roberta,
    tiny_t5,
    tiny_vit,
)
from tests.helpers_runs import tiny_tokenizer
from tests.helpers_verify import letter_tokenizer

CLASSIFIER = "AutoModelForSequenceClassification"
CAUSAL = "AutoModelForCausalLM"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, adapter/ and merged/ of a causal model."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_llama()
    base = save_backbone(model, folder / "base")
    write_adapter(folder / "adapter", adapt(model, base))
    assert run(["merge", str(folder / "adapter"), "-o", str(folder / "merged")]) == 0
    return folder


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "free_memory", lambda: 10**12)


# measures


def _probe(mask: torch.Tensor | None = None) -> Probe:
    return Probe({}, mask, 0, "")


def test_difference_of_rows() -> None:
    a = torch.tensor([[1.0, 2.0, -4.0], [0.0, 1.0, 0.5]])
    b = a + torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
    (d,) = compare({"logits": a}, {"logits": b}, _probe(), decides=True)
    assert (d.numbers, d.largest, d.mean, d.scale) == (6, 1.5, 0.25, 4.0)
    assert (d.relative, d.agree, d.decisions) == (0.375, 1, 2)


def test_padding_does_not_count() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    a = torch.ones(2, 2, 3)
    b = a.clone()
    b[1, 1] = 100
    (d,) = compare({"logits": a}, {"logits": b}, _probe(mask), decides=True)
    assert (d.numbers, d.largest, d.scale, d.decisions) == (9, 0, 1, 3)
    ends = {"start_logits": torch.tensor([[1.0, 2.0], [3.0, 9.0]]),
            "end_logits": torch.tensor([[2.0, 1.0], [3.0, -9.0]])}  # fmt: skip
    other = {"start_logits": ends["start_logits"].clone(), "end_logits": ends["end_logits"].clone()}
    other["start_logits"][1, 1] = -50
    start, end = compare(ends, other, _probe(mask), decides=True)
    assert (start.relative, start.numbers, start.agree, start.decisions) == (0, 3, 2, 2)
    assert end.agree == 2


def test_rows_as_wide_as_the_mask_are_no_positions() -> None:
    mask = torch.tensor([[True, False], [True, False]])
    a = torch.zeros(2, 2)
    (d,) = compare({"logits": a}, {"logits": a}, _probe(mask), decides=False)
    assert (d.numbers, d.relative, d.agree) == (4, 0, None)


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(SoraError, match=r"logits have the shapes \[3\] and \[2\]"):
        compare({"logits": torch.ones(4, 3)}, {"logits": torch.ones(4, 2)}, _probe(), decides=True)
    with pytest.raises(SoraError, match="none"):
        compare({"logits": torch.ones(4, 3)}, {}, _probe(), decides=True)


@pytest.mark.parametrize(
    ("formats", "allowed"),
    [
        ([], 1e-5),
        (["float32"], 1e-5),
        (["float64"], 1e-5),
        (["float32", "int8"], 1e-5),
        (["float32", "bfloat16"], 2**-5),
        (["float16"], 2**-8),
        (["float16", "bfloat16"], 2**-5),
    ],
)
def test_tolerance_follows_the_coarsest_format(formats: list[str], allowed: float) -> None:
    assert tolerance_for(formats)[0] == allowed


# inputs

MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "bert": (tiny_bert, CLASSIFIER),
    "roberta": (tiny_roberta, CLASSIFIER),
    "deberta": (tiny_deberta, CLASSIFIER),
    "gpt2": (tiny_gpt2, CAUSAL),
    "gpt2-classifier": (lambda: tiny_gpt2(num_labels=3), CLASSIFIER),
    "t5": (tiny_t5, "AutoModelForSeq2SeqLM"),
    "vit": (tiny_vit, "AutoModelForImageClassification"),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_run_and_always_on_the_same(name: str) -> None:
    make, auto = MODELS[name]
    model = make()
    assert auto_class_of(_saved(model.config, model)) == auto
    model.train()
    probes = [make_probe([model.config], auto, None) for _ in range(2)]
    first, second = (run_model(model, probe, "it") for probe in probes)
    assert model.training
    assert torch.equal(first["logits"], second["logits"])
    assert first["logits"].std() > 0.01
    ids = probes[0].inputs.get("input_ids")
    if ids is not None:
        special = {model.config.pad_token_id, model.config.eos_token_id} - {None}
        ordinary = ids[:, :-1] if model.config.is_encoder_decoder else ids
        assert not special & set(ordinary.flatten().tolist())
        assert int(ids.max()) < VOCABULARY


def _saved(config: Any, model: Any) -> Any:
    """As `save_pretrained` writes it."""
    config.architectures = [type(model).__name__]
    return config


def test_bart_classifier_gets_its_end_of_text() -> None:
    config = transformers.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_labels=3,
        max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.BartForSequenceClassification(config)
    probe = make_probe([config], CLASSIFIER, None)
    assert run_model(model, probe, "it")["logits"].shape == (6, 3)


def test_decoder_without_padding_token_is_given_one() -> None:
    model = tiny_gpt2(num_labels=3)
    model.config.pad_token_id = None
    probe = make_probe([model.config], CLASSIFIER, None)
    assert run_model(model, probe, "it")["logits"].shape == (6, 3)


def test_short_models_get_short_rows() -> None:
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16)
    probe = make_probe([config], CLASSIFIER, None)
    assert probe.inputs["input_ids"].shape == (6, 8)


def test_ids_that_both_vocabularies_have() -> None:
    configs = [transformers.BertConfig(vocab_size=size) for size in (5000, 40)]
    assert int(make_probe(configs, CLASSIFIER, None).inputs["input_ids"].max()) < 40


@pytest.mark.parametrize("end", ["z", None])
def test_tokenizer_without_a_padding_token_pads_with_its_end(end: str | None) -> None:
    """Or is not used, if it has neither."""
    tokenizer = letter_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, end
    probe = make_probe([tiny_gpt2().config], CLASSIFIER, tokenizer)
    assert ("random" in probe.what) == (end is None)


def test_sounds_are_made_for_whisper_alone() -> None:
    with refusal():
        make_probe([transformers.SpeechT5Config()], CLASSIFIER, None)


def test_tokenizer_that_knows_none_of_the_words_is_not_used() -> None:
    probe = make_probe([tiny_bert().config], CLASSIFIER, tiny_tokenizer())
    assert "random" in probe.what
    assert len(probe.inputs["input_ids"].unique()) > 20


def test_no_inputs_for_sound() -> None:
    with pytest.raises(SoraError, match="'wav2vec2' model"):
        make_probe([_soundless(transformers.Wav2Vec2Config())], CAUSAL, None)


def _soundless(config: Any) -> Any:
    config.vocab_size = None
    return config


def test_class_of_an_adapter_without_a_task() -> None:
    bert = tiny_bert()
    adapter = adapt(bert, Path("nowhere"), head=("classifier",))
    unknown = Adapter.of(adapter.layers, adapter.head, adapter.head_modules, None, adapter.base)
    assert auto_class_for(unknown, _saved(bert.config, bert)) == CLASSIFIER
    assert number_of_labels(unknown) == 3
    bare = Adapter.of(
        {path.removeprefix("bert."): f for path, f in adapter.layers.items()},
        {}, (), None, adapter.base,
    )  # fmt: skip
    assert auto_class_for(bare, bert.config) == "AutoModel"
    assert auto_class_for(bare, bert.config, [CLASSIFIER]) == "AutoModel"
    nowhere = {f"no.{path}": f for path, f in adapter.layers.items()}
    foreign = Adapter.of(nowhere, {}, (), None, adapter.base)
    assert auto_class_for(foreign, bert.config, [CLASSIFIER]) == "AutoModel"  # its error is clear


# memory


def test_size_in_float32_is_known_from_headers(made: Path, tmp_path: Path) -> None:
    numbers = sum(p.numel() for p in tiny_llama().parameters())
    base, adapted = find_subjects((str(made / "base"), str(made / "adapter")), base=None)
    assert float32_bytes(base) == 4 * numbers
    assert adapted.adapter is not None
    assert float32_bytes(adapted) == 4 * (numbers + adapted.adapter.parameters)
    half = tiny_llama().bfloat16()
    half.save_pretrained(tmp_path / "half")
    (subject,) = find_subjects((str(tmp_path / "half"),), base=None)
    assert float32_bytes(subject) == 4 * numbers
    (unknown,) = find_subjects(("owner/name-that-is-not-here",), base=None)
    assert float32_bytes(unknown) is None


def test_free_memory_of_this_machine() -> None:
    free = free_memory()
    assert free is None or 10**6 < free < 10**14


def test_free_memory_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unlimited = free_memory()
    for name, text in {"memory.max": "3000000\n", "memory.current": "2500000\n",
                       "memory.stat": "anon 7\ninactive_file 100000\n"}.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    assert free_memory() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (free_memory() is None) == (unlimited is None)


# the check that train, export and merge end with


@pytest.mark.usefixtures("plenty")
def test_check_says_that_it_is_verified(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert self_check(made / "adapter", made / "merged") == OK
    captured = capsys.readouterr()
    assert captured.out == ""
    start = r"verified: 100.00% of the adapter's effect on the logits is there \(residual "
    assert re.match(f"{start}(0.00|under 0.01)%\\); largest difference ", captured.err)
    assert captured.err.endswith("of the largest logit, argmax agrees on 72 of 72\n")


@pytest.mark.usefixtures("plenty")
def test_check_says_loudly_that_it_differs(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert self_check(made / "adapter", made / "base") == FAILED
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"DIFFERENT: {made / 'base'} does not give the outputs of")
    assert second.endswith(f"sora verify {made / 'adapter'} {made / 'base'}")


@pytest.mark.parametrize(
    ("free", "why"),
    [(None, "free memory is not known"), (200_000, "at least a quarter of the 200.0 kB free")],
)
def test_check_is_skipped_with_the_command_to_type(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    free: int | None, why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(checking, "free_memory", lambda: free)
    words = (made / "adapter", made / "base")
    assert self_check(*words, base=str(made / "base")) == OK
    said = capsys.readouterr().err
    assert said.startswith("not verified: ")
    assert why in said
    command = said.strip().rpartition("to verify: sora ")[2]
    assert run(shlex.split(command)) == 1


@pytest.mark.usefixtures("plenty")
def test_check_of_something_that_can_not_be_loaded(made: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(made / "merged", tmp_path / "it's broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(SoraError, match="was written but cannot be verified") as caught:
        self_check(made / "adapter", broken, base=str(made / "base"))
    command = shlex.split((caught.value.hint or "").removeprefix("to verify again: sora "))
    assert command == ["verify", str(made / "adapter"), str(broken), "--base", str(made / "base")]


@pytest.mark.usefixtures("plenty")
def test_trained_model_against_its_files(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama()
    adapter = adapt(model, made / "base", seed=3)
    write_adapter(tmp_path / "adapter", adapter)
    assert self_check(tmp_path / "adapter", trained=model.train(), fresh=False) == OK
    assert model.training
    assert "verified" in capsys.readouterr().err
    with torch.no_grad():
        model.model.norm.weight.mul_(1.01)
    assert self_check(tmp_path / "adapter", trained=model, fresh=False) == FAILED
    done = verify(str(tmp_path / "adapter"), trained=tiny_llama(), fresh=False)
    assert not done.judgement.same


@pytest.mark.usefixtures("plenty")
def test_a_run_whose_adapter_does_next_to_nothing_is_not_verified(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check says so with exit code 3; a run ends with 0."""
    model = tiny_llama()
    stored = adapt(model, made / "base")
    with torch.no_grad():
        for path in stored.layers:
            model.get_submodule(path).B.mul_(1e-7)
    layers = {p: dataclasses.replace(f, B=f.B * 1e-7) for p, f in stored.layers.items()}
    write_adapter(tmp_path / "adapter", stored.with_layers(layers))
    assert self_check(tmp_path / "adapter", trained=model, fresh=False) == NO_VERDICT
    told = capsys.readouterr().err
    assert told.startswith("not verified, cannot tell: the adapter changes the logits by ")


@pytest.mark.parametrize(
    ("train", "fresh", "said"),
    [
        (20.0, False, "takes about 12 s; --no-verify skips it"),  # of a run of 36 s
        (20.0, True, "takes about 28 s;"),
        (1000.0, False, "takes about 110 s;"),  # more than 20 s
        (5.0, False, "takes about 10 s;"),
    ],
)
def test_a_check_that_takes_long_for_its_run_is_announced(
    train: float, fresh: bool, said: str
) -> None:
    report = RunReport(name="it", recipe={})
    report.steps = 30
    report.seconds = {"import": 6.0, "load model": 10.0, "train": train}
    assert said in (announcement(report, 2, fresh=fresh) or "")
    report.seconds["evaluate"] = 1000.0
    assert (announcement(report, 2, fresh=fresh) is None) == (train < 1000 and not fresh)
    assert announcement(RunReport(name="it", recipe={}), 2) is None


def test_fresh_process_tells_what_went_wrong(tmp_path: Path) -> None:
    probe = make_probe([tiny_llama().config], CAUSAL, None)
    with refusal():
        reload_outputs(
            str(tmp_path / "gone"),
            base=None,
            auto=CAUSAL,
            probe=probe,
            dtype=torch.float32,
            alone=True,
        )


def test_an_adapter_without_a_base_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an export nothing can be compared then, and a large adapter takes seconds to read."""
    layers = {"a": LowRankFactors(torch.ones(2, 4), torch.ones(3, 2))}
    nowhere = BaseReference(path="", resolved="")
    write_adapter(tmp_path / "out", Adapter.of(layers, {}, (), None, nowhere))
    monkeypatch.setattr(StoredPair, "factors", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(SoraError, match="does not name its base model"):
        find_subjects((str(tmp_path / "out"),), base=None)
