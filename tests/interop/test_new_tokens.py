"""Runs with new tokens: what PEFT loads, what is merged, what goes on, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.report import RunReport
from sora_cli.train.trainer import AdapterTrainer
from tests.helpers_adapters import assert_same
from tests.helpers_chat import chat_tokenizer, instruct_rows, write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_models import VOCABULARY, tiny_llama
from tests.helpers_runs import resumes_as_if_whole, train, write_rows

NEW = ["<tool>", "red cat"]
"""A token whose pieces the tokenizer does not know, and one of two known words."""
FIRST = len(chat_tokenizer())
IDS = [FIRST, FIRST + 1]
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def with_tokens(rows: int, seed: int) -> list[dict[str, Any]]:
    made = instruct_rows(rows, seed=seed)
    return [{**row, "output": f"<tool> {row['output']} red cat"} for row in made]


def write(folder: Path, *, tied: bool, **training: Any) -> Path:
    """A recipe whose base has free rows (tied), or none (untied)."""
    recipe = write_chat_recipe(
        folder,
        model={"path": str(folder / "base"), "new_tokens": NEW},
        training={"max_steps": 4, "evaluate": 2, "head_learning_rate": 0.05, **training},
    )
    for name, seed in (("train", 0), ("valid", 1)):
        write_rows(folder / f"{name}.jsonl", with_tokens(16, seed))
    tiny_llama(tied=tied, eos_token_id=3, bos_token_id=2).save_pretrained(folder / "base")
    if not tied:
        model = load(folder / "base")
        model.resize_token_embeddings(FIRST)
        model.save_pretrained(folder / "base")
    return recipe


@dataclass(frozen=True)
class Case:
    folder: Path
    recipe: Path
    tied: bool
    report: RunReport
    optimised: dict[str, tuple[str, float]]
    """Trained parameter -> its optimiser group and decay."""

    @property
    def run(self) -> Path:
        return self.folder / "out"

    @property
    def adapter(self) -> Path:
        return self.run / "adapter"

    def logits(self, model: Any, size: int = FIRST + 2) -> Tensor:
        ids = torch.arange(3, FIRST + 2).view(4, -1)  # each token, the new ones, too
        with torch.no_grad():
            result: Tensor = model(input_ids=ids).logits[..., :size]
        return result

    def ours(self) -> Tensor:
        model = load(self.folder / "base")
        apply_adapter(model, read_adapter(self.adapter))
        return self.logits(model)


@pytest.fixture(scope="module", params=["tied", "untied"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder, tied = tmp_path_factory.mktemp(request.param), request.param == "tied"
    recipe = write(folder, tied=tied, loss="logits" if tied else "chunked")
    optimised: dict[str, tuple[str, float]] = {}
    inner = AdapterTrainer.training_step

    def noting(self: AdapterTrainer, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = inner(self, model, *args, **kwargs)
        names = {id(p): name for name, p in model.named_parameters()}
        assert {n for n, p in model.named_parameters() if p.grad is not None} == {
            n for n, p in model.named_parameters() if p.requires_grad
        }
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                optimised[names[id(p)]] = group["name"], group["weight_decay"]
        return loss

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AdapterTrainer, "training_step", noting)
        report = train(recipe)
    return Case(folder, recipe, tied, report, optimised)


def test_only_their_rows_are_trained_without_decay(case: Case) -> None:
    rows = {n: g for n, g in case.optimised.items() if n.endswith(".rows")}
    places = [EMBEDDING] if case.tied else [EMBEDDING, HEAD]
    assert rows == {
        f"{place}.parametrizations.weight.0.rows": ("head_no_decay", 0.0) for place in places
    }
    assert not [n for n in case.optimised if n.endswith("weight.original")]
    assert case.report.parameters.head == len(places) * len(IDS) * 32
    base = load(case.folder / "base")
    numbers = sum(p.numel() for p in base.parameters())
    assert case.report.parameters.base == numbers + (0 if case.tied else 2 * 2 * 32)
    stored = read_adapter(case.adapter).rows
    assert set(stored) == set(places)
    for place, replaced in stored.items():
        assert [*replaced.indices] == IDS
        pieces = base.get_submodule(place).weight[[19, 11]]  # red, cat
        moved = (replaced.make()[1] - pieces.mean(0)).abs()
        assert 0 < moved.max() <= 4 * 0.05 * 1.01  # AdamW moves at most by the rate a step


def test_peft_loads_them(case: Case) -> None:
    """By the lines of code on the adapter's card."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.adapter)
    assert len(tokenizer) == FIRST + 2
    assert tokenizer.encode("a red cat<tool>b")[1:3] == IDS[::-1]
    assert tokenizer.decode(IDS[:1], skip_special_tokens=True) == "<tool>"
    model = load(case.folder / "base")
    model.resize_token_embeddings(len(tokenizer))
    theirs = PeftModel.from_pretrained(model, case.adapter).eval()
    assert_same(case.ours(), case.logits(theirs))
    card = (case.adapter / "README.md").read_text()
    assert card.index("resize_token_embeddings(len(tokenizer))") < card.index("= PeftModel")


def test_merged_pruned_exported_and_packed(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    assert run(["merge", str(case.run), "-o", str(merged)]) == 0
    assert "verified: 100.0" in capsys.readouterr().err
    model = load(merged)
    assert model.config.vocab_size == (VOCABULARY if case.tied else FIRST + 2)
    assert_same(case.logits(model), case.ours())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (merged / name).read_bytes() == (case.adapter / name).read_bytes()
    assert run(["eval", str(merged), "--recipe", str(case.recipe), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["validation"]
    assert scored == pytest.approx(case.report.metrics["validation"], rel=1e-4)
    rows = read_adapter(case.adapter).rows
    small, plain, packed = tmp_path / "small", tmp_path / "plain", tmp_path / "p.safetensors"
    assert run(["prune", str(case.run), "-o", str(small), "--rank", "2", "--bits", "4"]) == 0
    assert run(["export", str(small), "-o", str(packed), "--format", "packed"]) == 0
    assert run(["export", str(packed), "-o", str(tmp_path / "unpacked")]) == 0
    assert run(["export", str(case.run), "-o", str(plain), "--dtype", "bfloat16"]) == 0
    for place in (small, tmp_path / "unpacked", plain):
        again = read_adapter(place).rows
        assert again.keys() == rows.keys()
        assert all(torch.equal(again[p].make(), rows[p].make()) for p in rows)
    assert run(["inspect", str(small)]) == 0
    assert "new tokens:   <tool>, red cat" in capsys.readouterr().out


def test_a_changed_row_is_told(case: Case, tmp_path: Path) -> None:
    """Verification looks at the new tokens' own rows, also at those of the input alone."""
    other = shutil.copytree(case.adapter, tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    key = f"base_model.model.{EMBEDDING}.token_adapter.trainable_tokens_delta"
    tensors[key][1] += 0.5
    save_file(tensors, other / "adapter_model.safetensors")
    assert run(["verify", str(case.adapter), str(other)]) == 1


def test_a_run_resumes_as_if_whole(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumes_as_if_whole(case.recipe, tmp_path, monkeypatch, whole=case.run)


def test_what_was_scored_is_scored_again(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the adapter's own tokens, whatever the recipe says."""
    bare = tmp_path / "bare.yaml"
    recipe = yaml.safe_load(case.recipe.read_text())
    del recipe["model"]["new_tokens"]
    bare.write_text(yaml.safe_dump(recipe))
    for place in (case.recipe, bare):
        capsys.readouterr()
        assert run(["eval", str(case.run), "--recipe", str(place), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)["validation"]
        assert scores == pytest.approx(case.report.metrics["validation"])


def test_a_run_starts_from_them(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    out = case.folder / "next"
    words = [f"start.adapter={case.adapter}", "method={name: lora, r: 4}", f"output.dir={out}"]
    train(case.recipe, *words, "training.max_steps=0")
    before, after = (read_adapter(place).rows for place in (case.adapter, out / "adapter"))
    assert all(torch.equal(before[p].make(), after[p].make()) for p in before)
    # in another order, with one more: each token keeps its own row, whatever its number is
    train(case.recipe, *words, "training.max_steps=0", "--force",
          'model.new_tokens=["red cat", "<x>", "<tool>"]')  # fmt: skip
    assert "has no rows of <x>: they begin as the mean" in capsys.readouterr().err
    moved = read_adapter(out / "adapter").rows
    assert all(torch.equal(before[p].make(), moved[p].make()[[2, 0]]) for p in before)
    refused(capsys, "train", case.recipe, *words, "model.new_tokens=['<x>']", "--force")
    refused(capsys, "train", case.recipe, *words, "model.new_tokens=[]", "--force")


@pytest.mark.parametrize(
    "words",
    [
        ["export", "RUN", "-o", "x.gguf", "--format", "gguf"],
        ["combine", "RUN", "RUN", "-o", "x", "--weights", "1,1"],
    ],
    ids=" ".join,
)
def test_what_cannot_carry_them_refuses(
    case: Case, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [{"RUN": str(case.run), "x": str(tmp_path / "x")}.get(word, word) for word in words]
    given = [word.replace("x.gguf", str(tmp_path / "x.gguf")) for word in given]
    refused(capsys, *given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["model.new_tokens=['<a>', '<a>']"],
        ["model.new_tokens=['<a>', ' ']"],
        ["model.new_tokens=['cat']"],
        ["method={name: bitfit}"],
        ["task={name: preference}"],
        ["method.targets=[q_proj, lm_head]"],
    ],
    ids=" ".join,
)
def test_a_recipe_that_cannot_have_them(
    words: list[str], untied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "train", untied, *words)
    assert not (untied.parent / "out").exists()


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("refused"), tied=False)
