"""`sora push`: what leaves this machine, and what does not; against a stand-in of the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.card import write_card
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.shared import shared_model
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from tests.golden import told
from tests.helpers_errors import refused
from tests.helpers_reports import write_report
from tests.helpers_runs import tiny_tokenizer
from tests.hub_server import TOKEN, Hub, serving

Output = pytest.CaptureFixture[str]
SECRET = "secret-place"
NAME_OF_A_COMMIT = "(?<=/commit/)[0-9a-f]+"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def _run(tmp_path: Path, *, hub_id: str | None = "goo/bert") -> Path:
    """A run of a base model that lies in a place that nobody should hear of."""
    place = tmp_path / SECRET / "base"
    place.mkdir(parents=True)
    config = {"model_type": "bert", "_name_or_path": "goo/its-parent"}
    (place / "config.json").write_text(json.dumps(config))
    base = BaseReference(str(place), str(place), None, "x:1", hub_id)
    step = {"command": "prune", "recipe": f"/home/{SECRET}/r.yaml", "rank": 2}
    meta = AdapterMeta(method="sora", task="causal-lm", lineage=(step,))
    layers = {"layer.0.query": LowRankFactors(torch.rand(3, 8), torch.rand(8, 3))}
    folder = write_report(tmp_path / "runs" / "my-run")
    write_adapter(
        folder / "adapter",
        Adapter.of(layers, {}, (), "CAUSAL_LM", base, meta=meta),
        beside=lambda to: tiny_tokenizer().save_pretrained(to),
        describe=write_card,
    )
    (folder / "adapter" / "notes.txt").write_text("mine")
    (folder / "predictions.jsonl").write_text("mine")
    return folder


def test_an_adapter(tmp_path: Path, hub: Hub, capsys: Output) -> None:
    folder = _run(tmp_path)
    assert run(["push", str(folder), "--license", "apache-2.0"]) == 0
    out, err = capsys.readouterr()
    told(f"{out}{err}", hide=NAME_OF_A_COMMIT)
    files = hub.files("me/my-run")
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors",
                             "sora.json", "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
    assert hub.repositories["me/my-run"]["private"] is True
    assert hub.messages == ["Upload by sora"]
    assert not any(SECRET.encode() in content or str(tmp_path).encode() in content
                   for content in files.values())  # fmt: skip
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == weights
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "goo/bert"
    sent = json.loads(files["sora.json"])
    assert sent["base"] == {"path": "goo/bert", "resolved": "goo/bert", "revision": None,
                            "fingerprint": "x:1", "hub_id": "goo/bert"}  # fmt: skip
    assert sent["lineage"][0]["recipe"] == "r.yaml"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.license) == ("goo/bert", "apache-2.0")
    assert 'PeftModel.from_pretrained(model, "me/my-run")' in card.text
    assert "THIS ADAPTER" not in card.text
    assert any(request.startswith("PUT /objects/") for request in hub.requests)


def test_what_is_there_stays_as_visible_as_it_is(tmp_path: Path, hub: Hub, capsys: Output) -> None:
    folder = str(_run(tmp_path))
    assert run(["push", folder]) == 0
    capsys.readouterr()
    refused(capsys, "push", folder, "--public")
    assert hub.repositories["me/my-run"]["private"] is True
    assert hub.messages == ["Upload by sora"]


def test_what_was_pushed_is_an_adapter(tmp_path: Path, hub: Hub) -> None:
    folder = _run(tmp_path)
    assert run(["push", str(folder / "adapter"), "org/it", "--public"]) == 0
    assert hub.repositories["org/it"]["private"] is False
    for name, content in hub.files("org/it").items():
        (tmp_path / "got").mkdir(exist_ok=True)
        (tmp_path / "got" / name).write_bytes(content)
    got, had = read_adapter(tmp_path / "got"), read_adapter(folder)
    assert got.base.name() == "goo/bert"
    assert torch.equal(got.layers["layer.0.query"].A, had.layers["layer.0.query"].A)


def test_a_branch_a_message_and_json(tmp_path: Path, hub: Hub, capsys: Output) -> None:
    folder = _run(tmp_path)
    words = ["--revision", "v1", "--message", "first", "--json"]
    assert run(["push", str(folder), "it", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["repository"], facts["private"], facts["left"]) == ("me/it", True, ["notes.txt"])
    assert (hub.messages, hub.files("me/it")) == (["first"], {})
    assert "sora.json" in hub.files("me/it", "v1")
    assert run(["push", str(folder), "it"]) == 0  # it is there: a new commit


def test_the_card_that_a_person_has_edited_is_kept(tmp_path: Path, hub: Hub) -> None:
    folder = _run(tmp_path)
    card = folder / "adapter" / "README.md"
    card.write_text(card.read_text().replace("# ", "# By hand: ") + "\nThanks to all.\n")
    assert run(["push", str(folder), "--base-id", "goo/other"]) == 0
    sent = ModelCard(hub.files("me/my-run")["README.md"].decode())
    assert "Thanks to all." in sent.text
    assert sent.data.base_model == "goo/other"
    assert sent.data.tags[0] == "base_model:adapter:goo/other"


def test_a_dry_run_asks_nobody(tmp_path: Path, hub: Hub, capsys: Output) -> None:
    folder = _run(tmp_path)
    assert run(["push", str(folder), "me/it", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    told(out, hide=r"[\d,.]+ k?B")
    told(err)
    assert hub.requests == []
    assert run(["push", str(folder), "me/it", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"].keys() > {"README.md", "sora.json"}


def test_a_base_model_that_nobody_could_find(tmp_path: Path, hub: Hub, capsys: Output) -> None:
    folder = _run(tmp_path, hub_id=None)
    refused(capsys, "push", str(folder))
    assert hub.requests == []
    assert run(["push", str(folder), "--base-id", "goo/bert"]) == 0
    assert "README.md" in hub.files("me/my-run")
    refused(capsys, "push", str(folder), "--base-id", "../x")


def test_without_a_token(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    folder = _run(tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(capsys, "push", str(folder))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(capsys, "push", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(capsys, "push", str(folder))
    assert hub.repositories == {}


def test_what_the_hub_refuses(tmp_path: Path, hub: Hub, capsys: Output) -> None:
    folder = _run(tmp_path)
    hub.refuse = {"/preupload/": 403}
    refused(capsys, "push", str(folder))
    assert hub.files("me/my-run") == {}
    hub.refuse = {}
    hub.repositories["me/my-run"]["private"] = False
    refused(capsys, "push", str(folder))
    assert hub.files("me/my-run") == {}
    assert run(["push", str(folder), "--public"]) == 0


def test_what_cannot_be_pushed(tmp_path: Path, hub: Hub, capsys: Output) -> None:
    folder = _run(tmp_path)
    for name in ("a/b/c", "a b", "", "a--b", "a..b"):
        refused(capsys, "push", str(folder), name)
    refused(capsys, "push", str(tmp_path / "nowhere"))
    refused(capsys, "push", str(folder), "--merged")
    card = folder / "adapter" / "README.md"
    good = card.read_text()
    for bad in ("---\na: [\n---\n", "---\n- a\n---\n", "---\nlicense: [mit]\n---\n"):
        card.write_text(bad)
        refused(capsys, "push", str(folder))
    card.write_text(f"{good}\nmade in {folder.resolve() / 'adapter'}\n")
    refused(capsys, "push", str(folder))
    assert hub.requests == []


def test_a_merged_model(tmp_path: Path, hub: Hub) -> None:
    place = tmp_path / "merged"
    (place / "more").mkdir(parents=True)
    config: dict[str, Any] = {"model_type": "bert", "_name_or_path": f"/home/{SECRET}/x"}
    (place / "config.json").write_text(json.dumps(config))
    (place / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# Merged\n")
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "more" / "a.jinja").write_text("x")
    (place / "data_config.json").write_text('[{"name": "a list"}]')
    (place / ".cache").write_text("mine")
    (place / "link").symlink_to("/etc/hostname")
    assert run(["push", str(place), "--merged", "--base-id", "goo/bert"]) == 0
    assert sorted(hub.files("me/merged")) == [
        "README.md", "config.json", "data_config.json", "model.safetensors",
        "more/a.jinja"]  # fmt: skip
    assert json.loads(hub.files("me/merged")["config.json"]) == {"model_type": "bert"}
    sent = ModelCard(hub.files("me/merged")["README.md"].decode())
    assert sent.data.tags == ["base_model:finetune:goo/bert"]
    assert shared_model(place, base_id=None, license_=None).left == (".cache", "link")
    with pytest.raises(SoraError, match="it is not a merged model"):
        shared_model(tmp_path, base_id=None, license_=None)
