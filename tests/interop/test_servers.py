"""`sora verify --server` with real servers: llama.cpp's, and that of transformers.

The first layers of SmolLM2-135M-Instruct and two adapters of random factors.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sora_cli.app import run
from tests import smollm2
from tests.interop.helpers_llama_cpp import NEEDS, LlamaCpp


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = smollm2.small(tmp_path_factory)
    with smollm2.read(file):
        yield file


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("served")
    one, other = (
        smollm2.write_adapter(folder / str(i), strength=0.3, seed=i, base=base) for i in (0, 1)
    )
    return one, other


def verdict(capsys: pytest.CaptureFixture[str], adapter: Path, url: str) -> tuple[int, str]:
    capsys.readouterr()
    code = run(["verify", str(adapter), "--server", url, "--json"])
    return code, str(json.loads(capsys.readouterr().out)["verdict"])


@pytest.mark.long
def test_llama_cpp(
    base: Path, adapters: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter on, off, at half its strength; another adapter."""
    pytest.importorskip("xllamacpp", reason=NEEDS)
    lora = tmp_path / "lora.gguf"
    assert run(["export", str(adapters[0]), "-o", str(lora), "--format", "gguf"]) == 0
    llama = LlamaCpp(base, lora)
    assert verdict(capsys, adapters[0], llama.address) == (0, "this adapter")
    assert verdict(capsys, adapters[1], llama.address) == (1, "another adapter")
    for scale, word in ((0.0, "the bare base"), (0.5, "another adapter")):
        body = json.dumps([{"id": 0, "scale": scale}]).encode()
        urllib.request.urlopen(f"{llama.address}/lora-adapters", body, timeout=60).close()
        assert verdict(capsys, adapters[0], llama.address) == (1, word)


@contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    """Run `transformers serve` at a port that it chooses; give its address."""
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    start = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", start, *words], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "running on" in line), "")
        assert line, "it ended"
        yield line.split("running on ")[1].split()[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
def test_transformers_serve(
    base: Path, adapters: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It serves merged models and gives no log-probabilities: the texts decide."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason="needs pip install 'transformers[serving]'")
    merged, plain = tmp_path / "merged", tmp_path / "base"
    assert run(["merge", str(adapters[0]), "-o", str(merged)]) == 0
    with transformers_serve(merged) as url:
        assert verdict(capsys, adapters[0], url) == (0, "this adapter")
        assert verdict(capsys, adapters[1], url)[0] != 0
    smollm2.model(base).save_pretrained(plain)
    for file in merged.glob("*token*"):
        (plain / file.name).write_bytes(file.read_bytes())
    with transformers_serve(plain) as url:
        assert verdict(capsys, adapters[0], url) == (1, "the bare base")
