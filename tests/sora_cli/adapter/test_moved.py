"""A base model that has moved is found by its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BASES, BaseReference
from sora_cli.adapter.moved import located
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.saving import base_reference
from sora_cli.core.errors import SoraError
from tests.helpers_errors import refusal

COMMIT = "0123456789" * 4


def _model(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.full((3, 2), value)}, folder / "model.safetensors")
    return folder


def test_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = _model(tmp_path / "old" / "base", 1.0)
    layers = {"layer.0.q": LowRankFactors(torch.rand(1, 8), torch.rand(8, 1))}
    base = base_reference(str(place), str(place), None)
    write_adapter(tmp_path / "a", Adapter.of(layers, {}, (), None, base))
    _model(tmp_path / "disk" / "b" / "other", 2.0)
    (tmp_path / "disk" / "broken").mkdir()
    (tmp_path / "disk" / "broken" / "config.json").write_text("{}")
    (tmp_path / "disk" / "broken" / "model.safetensors").write_text("x")
    monkeypatch.setenv(BASES, f"{tmp_path / 'nowhere'}:{tmp_path / 'disk'}")
    assert located(base) == base  # it is where it was
    now = tmp_path / "disk" / "c" / "mine"
    (tmp_path / "disk" / "c").mkdir()
    place.rename(now)
    assert read_adapter(tmp_path / "a").base.name() == str(now.resolve())
    monkeypatch.setenv(BASES, str(now))
    assert located(base).here == str(now.resolve())
    monkeypatch.delenv(BASES)
    with refusal():
        read_adapter(tmp_path / "a").base.name()
    monkeypatch.setenv(BASES, str(tmp_path / "disk" / "b"))
    with pytest.raises(SoraError, match="where the base model was"):
        located(base).name()  # only another one


def test_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" * 99)
    base = base_reference(str(tmp_path / "m.gguf"), str(tmp_path / "m.gguf"), None)
    (tmp_path / "sub").mkdir()
    (tmp_path / "m.gguf").rename(tmp_path / "sub" / "n.GGUF")
    monkeypatch.setenv(BASES, str(tmp_path))
    assert located(base).resolved == str((tmp_path / "sub" / "n.GGUF").resolve())


def test_its_name_on_the_hub(tmp_path: Path) -> None:
    cached = _model(tmp_path / "hub" / "models--goo--bert-x" / "snapshots" / COMMIT, 1.0)
    base = base_reference(str(cached), str(cached), None)
    assert (base.hub_id, base.revision) == ("goo/bert-x", COMMIT)
    assert base_reference("goo/bert", "goo/bert", "main").hub_id == "goo/bert"
    local = _model(tmp_path / "plain", 1.0)
    assert base_reference(str(local), str(local), None).hub_id is None
    gone = BaseReference(str(tmp_path / "no"), str(tmp_path / "no"), hub_id="goo/bert")
    assert gone.name() == "goo/bert"
    assert BaseReference("package://p/m", "/other/machine").name() == "package://p/m"
