"""Model references: which are local, which are Hub ids, and what is wrong with the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.adapter.metadata import BaseReference
from sora_cli.core.errors import SoraError
from sora_cli.model.references import ask_hub, local_checkpoint, resolve_model_path
from tests.helpers_errors import refusal
from tests.sora_cli.gguf.test_merged_file import base_file


def test_directories_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    base_file(tmp_path / "q.gguf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for reference in ("m", "./m", "~/m", str(tmp_path / "m")):
        assert resolve_model_path(reference) == str(tmp_path / "m")
    assert resolve_model_path("q.gguf") == str(tmp_path / "q.gguf")
    assert local_checkpoint(str(tmp_path / "m")) == tmp_path / "m"


@pytest.mark.parametrize("name", ["bert-base-uncased", "microsoft/deberta-v3-base"])
def test_hub_ids_stay(name: str) -> None:
    assert resolve_model_path(name) == name
    assert local_checkpoint(f"no-such-owner/{name.rpartition('/')[2]}") is None


@pytest.mark.parametrize("path", ["/no/such", "./no", "~/no-such-model", "a/b/c", "x.gguf", ""])
def test_what_can_only_be_a_path_must_be_there(path: str) -> None:
    with pytest.raises(SoraError, match="no model at"):
        resolve_model_path(path)


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_models"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('looking does not import')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_model_path("package://some_models/model") == str(package / "model")
    with pytest.raises(SoraError, match="holds no 'other'"):
        resolve_model_path("package://some_models/other")
    (tmp_path / "x").mkdir()
    with pytest.raises(SoraError, match=r"holds no '\.\./x'"):
        resolve_model_path("package://some_models/../x")
    with refusal():
        resolve_model_path("package://gt_no_such_thing/model")


def test_what_must_be_there_names_what_a_model_may_be() -> None:
    with refusal():
        resolve_model_path("./no")


def test_built_in_models_are_looked_up_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    made = tmp_path / "sora-models" / "tiny-vit-v1"
    made.mkdir(parents=True)
    assert resolve_model_path("builtin://tiny-vit") == str(made)
    with pytest.raises(SoraError, match="did you mean 'tiny-vit'"):
        resolve_model_path("builtin://tiny-vt")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 9999, "模" * 90])
def test_names_too_long_to_be_looked_up_are_not_there(name: str) -> None:
    """`sora.json` is anybody's file: what it names as the base must not end a command."""
    assert local_checkpoint(name) is None
    assert BaseReference(path=name, resolved=name).here is None
    with pytest.raises(SoraError, match="there is no model at"):
        resolve_model_path(name)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download of its client tries for twenty seconds."""

    def refuse(url: str) -> None:
        asked.append(url)
        raise RuntimeError("Name or service not known")

    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: asked.append("download"))
    with pytest.raises(OSError, match="Name or service not known"):
        ask_hub("nobody/nothing")
    assert len(asked) == 1
    assert asked[0].endswith("/nobody/nothing/resolve/main/config.json")
