"""`same_answers`: what of two models must be equal so that they need no test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sora_cli.adapter.digest import result_digest, same_answers
from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from tests.helpers_runs import Trained

Change = Callable[[Path], None]


def edited(name: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        file = folder / name
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, **values}))

    return change


def a_number(name: str) -> Change:
    """Change one number of the weights."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        largest = max(tensors, key=lambda key: tensors[key].numel())
        before = result_digest(folder)
        for place in range(tensors[largest].numel()):
            made = {key: tensor.clone() for key, tensor in tensors.items()}
            made[largest].view(-1)[place] += 1
            save_file(made, folder / name, {"format": "pt"})
            if name != "model.safetensors" or result_digest(folder) == before:
                return  # a fingerprint samples the weights of a model
        raise AssertionError("the fingerprint has every number")

    return change


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


OF_ADAPTERS: dict[str, Change] = {
    "weights": a_number("adapter_model.safetensors"),
    "alpha": edited("adapter_config.json", lora_alpha=1),
    "max_length": edited("sora.json", max_length=3),
    "classes": edited("sora.json", labels=["1", "0"]),
    "reference": edited("sora.json", reference="sha256:0"),
    "tokenizer": edited("tokenizer_config.json", do_lower_case=True),
    "no tokenizer": without("tokenizer.json"),
    "template": lambda folder: (
        (folder / "chat_template.jinja").write_text("{{ messages }}") and None
    ),
}
OF_MODELS: dict[str, Change] = {
    "a number": a_number("model.safetensors"),
    "config": edited("config.json", layer_norm_eps=0.1),
    "id2label": edited("config.json", id2label={"0": "1", "1": "0"}),
    "generation": edited("generation_config.json", max_new_tokens=1),
    "tokenizer": edited("tokenizer.json", added_tokens=[]),
    "code": lambda folder: (folder / "modeling.py").write_text("1") and None,
}


def copy_of(source: Path, place: Path) -> Path:
    return Path(shutil.copytree(source, place))


@pytest.mark.parametrize("name", OF_ADAPTERS)
def test_adapters(classifier: Trained, tmp_path: Path, name: str) -> None:
    one, other = classifier.run / "adapter", copy_of(classifier.run / "adapter", tmp_path / "b")
    (other / "README.md").write_text("another card")
    assert same_answers((one, None), (other, None))
    OF_ADAPTERS[name](other)
    assert not same_answers((one, None), (other, None))
    assert not same_answers((other, None), (one, None))


@pytest.mark.parametrize("name", OF_MODELS)
def test_models(classifier: Trained, tmp_path: Path, name: str) -> None:
    other = copy_of(classifier.merged, tmp_path / "b")
    assert same_answers((classifier.merged, None), (other, None))
    OF_MODELS[name](other)
    assert not same_answers((classifier.merged, None), (other, None))
    assert not same_answers((other, None), (classifier.merged, None))


def test_the_base_model_belongs_to_an_adapter(classifier: Trained, tmp_path: Path) -> None:
    """Wherever it is, and also its tokenizer, which an adapter without one takes."""
    adapter, base = classifier.run / "adapter", copy_of(classifier.folder / "base", tmp_path / "c")
    moved = copy_of(adapter, tmp_path / "b")
    known = json.loads((moved / "sora.json").read_text())["base"]
    edited("sora.json", base={**known, "path": str(base), "resolved": str(base)})(moved)
    edited("adapter_config.json", base_model_name_or_path=str(base))(moved)
    assert same_answers((adapter, None), (moved, None))
    edited("tokenizer_config.json", do_lower_case=True)(base)
    assert not same_answers((adapter, None), (moved, None))
    assert same_answers((adapter, str(base)), (moved, str(base)))
    shutil.rmtree(base)
    assert not same_answers((adapter, None), (moved, None))


def test_the_gate_scores_what_is_not_known_to_be_the_same(
    classifier: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max-drop", "90pt", "--recipe", str(classifier.recipe)]
    other = copy_of(classifier.run / "adapter", tmp_path / "b")
    assert run(["verify", str(classifier.run), str(other), *words]) == OK
    assert "the same in every file that decides an answer" in capsys.readouterr().out
    edited("tokenizer_config.json", do_lower_case=True)(other)
    assert run(["verify", str(classifier.run), str(other), *words]) == OK
    told = capsys.readouterr().out
    assert "the same in every file" not in told
    assert "distinct inputs" in told
