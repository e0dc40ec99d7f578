"""`sora verify --server` with adapters of vectors: servers of this file, with real models."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from sora_cli.adapter.directory import write_adapter
from sora_cli.app import run
from sora_cli.tasks.vectors import vector_form
from tests.golden import NUMBER, told
from tests.helpers_adapters import adapt, save_backbone
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert, tiny_llama
from tests.helpers_verify import letter_tokenizer
from tests.sora_cli.verify.test_server import (
    Answer,
    facts_in,
    on,
    plain,
    rounded,
    serving,
    weaker,
)

POOLING = {"pooling_mode": "mean", "word_embedding_dimension": 16}


def listing(base: Path) -> None:
    """The files by which sentence-transformers knows that tokens are averaged."""
    kinds = ("Transformer", "Pooling", "Normalize")
    listed = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}",
         "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    (base / "modules.json").write_text(json.dumps(listed))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))


@dataclass(frozen=True)
class Made:
    """A base, an adapter of it and the merged model, as directories."""

    base: Path
    adapter: Path
    merged: Path


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny encoder with a list of modules, or a decoder without one, and an adapter."""
    encoder, folder = request.param == "encoder", tmp_path_factory.mktemp(request.param)
    made = Made(*(folder / name for name in ("base", "adapter", "merged")))
    save_backbone((tiny_bert if encoder else tiny_llama)(num_labels=2), made.base)
    letter_tokenizer().save_pretrained(made.base)
    if encoder:
        listing(made.base)
    stored = adapt(AutoModel.from_pretrained(made.base), made.base)
    write_adapter(made.adapter, replace(stored, task_type="FEATURE_EXTRACTION"))
    assert run(["merge", str(made.adapter), "-o", str(made.merged)]) == 0
    return made


class Embeddings:
    """A server of a model's vectors.

    Args:
        base: the bare base that it serves, too.
        pooling: as of a base without a list of modules; of a decoder the last token by default.
    """

    def __init__(self, made: Made, model: Any, base: Any = None) -> None:
        self.model, self.base, self.tokenizer = model, base, letter_tokenizer()
        listed = (made.base / "modules.json").is_file()
        self.form = vector_form(str(made.base), None, "auto" if listed else "last")
        self.length = 3.0  # no server has to give vectors of unit length

    @torch.no_grad()
    def vector(self, model: Any, text: str) -> Tensor:
        batch = self.tokenizer(text, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        return self.length * self.form(hidden, batch["attention_mask"])[0]

    def __call__(self, path: str, body: Any) -> Answer:
        if path == "/v1/models":
            own = {"id": "tiny", "parent": None if self.base is None else "base"}
            return plain({"data": [own] if self.base is None else [{"id": "base"}, own]})
        if path != "/v1/embeddings":
            return plain({"error": {"message": "no such path"}}, 404)
        assert body["encoding_format"] == "float"
        model = self.base if body["model"] == "base" else self.model
        rows = [
            {"index": i, "embedding": self.vector(model, text).tolist()}
            for i, text in enumerate(body["input"])
        ]
        return plain({"data": rows[::-1]})  # the index tells, not the order


def loaded(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder).eval()


def asked(
    capsys: pytest.CaptureFixture[str], adapter: Path, server: Embeddings
) -> tuple[int, dict[str, Any]]:
    with serving(server) as (url, paths):
        code = run(["verify", str(adapter), "--server", url, "--model", "tiny", "--json"])
    assert "/v1/completions" not in paths
    return code, facts_in(capsys.readouterr().out)


@pytest.mark.parametrize("listed", [True, False], ids=["with its base", "alone"])
def test_the_adapter_the_base_and_another(
    made: Made, listed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, merged = loaded(made.base), loaded(made.merged)
    bare = base if listed else None
    code, facts = asked(capsys, made.adapter, Embeddings(made, merged, bare))
    assert (code, facts["verdict"]) == (0, "this adapter")
    assert facts["path"] == "/v1/embeddings"
    assert facts["texts"] == 24
    assert facts["least_cosine"] > 0.999
    assert facts["share"] == pytest.approx(1, abs=1e-3)
    assert (facts["noise"] is None) != listed
    code, facts = asked(capsys, made.adapter, Embeddings(made, loaded(made.base), bare))
    assert (code, facts["verdict"]) == (1, "the bare base")
    assert facts["to_base"] < 1e-5
    half = weaker(made.adapter, tmp_path / "half", 0.5)
    code, facts = asked(capsys, half, Embeddings(made, merged, bare))
    # another direction of other length; without a base, rounding to 4 bits could explain it
    assert facts["verdict"] == ("another adapter" if listed else "cannot tell")
    assert code == (1 if listed else 3)


def test_rounding_that_both_vectors_share_does_not_count(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, merged = loaded(made.base), loaded(made.merged)
    coarse = rounded(base, 0.02)
    server = Embeddings(made, on(coarse, merged, base), coarse)
    code, facts = asked(capsys, made.adapter, server)
    assert (code, facts["verdict"]) == (0, "this adapter")
    assert facts["noise"] > 1e-3
    assert facts["cosine"] > 0.95
    # a small effect below the noise of its base
    small = weaker(made.adapter, tmp_path / "small", 0.02)
    code, facts = asked(capsys, small, Embeddings(made, on(coarse, merged, base), coarse))
    assert facts["verdict"] != "this adapter"


def test_what_is_shown(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    server = Embeddings(made, loaded(made.merged), loaded(made.base))
    with serving(server) as (url, _):
        assert run(["verify", str(made.adapter), "--server", url, "--model", "tiny"]) == 0
    told(capsys.readouterr().out, hide=NUMBER)


def test_vectors_of_another_model_and_no_effect(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Embeddings(made, loaded(made.merged))
    full = server.vector
    server.vector = lambda *words: full(*words)[:-1]  # type: ignore[method-assign]
    code, facts = asked(capsys, made.adapter, server)
    assert (code, facts["verdict"]) == (1, "neither")
    assert "numbers" in facts["reason"]
    none = weaker(made.adapter, tmp_path / "none", 0.0)
    code, facts = asked(capsys, none, Embeddings(made, loaded(made.base)))
    assert (code, facts["verdict"], facts["texts"]) == (3, "cannot tell", 0)


WRONG: dict[str, Any] = {
    "no list": {"data": "x"},
    "too few": {"data": [{"index": 0, "embedding": [1.0]}]},
    "no numbers": {"data": [{"index": i, "embedding": ["x"]} for i in range(24)]},
    "NaN": {"data": [{"index": i, "embedding": [math.nan]} for i in range(24)]},
    "no vectors": {"data": [{"index": i, "embedding": []} for i in range(24)]},
    "lengths": {"data": [{"index": i, "embedding": [1.0] * (1 + i)} for i in range(24)]},
    "base64": {"data": [{"index": i, "embedding": "AAAA"} for i in range(24)]},
}


@pytest.mark.parametrize("name", [*WRONG, "another path"])
def test_a_bad_answer(made: Made, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def answers(path: str, _: Any) -> Answer:
        if path == "/v1/models":
            return plain({"data": [{"id": "tiny"}]})
        return plain(WRONG[name]) if name in WRONG else plain({"detail": "Not Found"}, 404)

    with serving(answers) as (url, _):
        refused(capsys, "verify", made.adapter, "--server", url)
