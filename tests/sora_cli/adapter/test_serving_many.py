"""`sora inspect --serve`: ten adapters of three bases, their servers, and the price of fitting."""

from __future__ import annotations

import json
import re
import shlex
from datetime import date
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.facts import Facts, facts_of
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.programs import PROGRAMS, old_rules
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.serving_many import BasePlan, ServerPlan, plan_lines, plan_servers
from sora_cli.app import run
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.golden import told
from tests.helpers_errors import refused
from tests.helpers_models import tiny_llama

TODAY = date(2026, 12, 1)
KINDS = "self_attn.q_proj", "mlp.down_proj"


def write(directory: Path, base: str, model: Any, *, rank: int = 4, **options: Any) -> Path:
    """An adapter of two kinds of layers, each component weaker than the one before."""
    paths = [f"model.layers.{i}.{kind}" for i in (0, 1) for kind in KINDS]
    g, layers = torch.Generator().manual_seed(0), {}
    for i, path in enumerate(paths):
        r = rank - i % 2 if options.get("uneven") else rank
        n_out, n_in = model.get_submodule(path).weight.shape
        b = torch.randn(n_out, r, generator=g) * 0.7 ** torch.arange(r)
        layers[path] = LowRankFactors(torch.randn(r, n_in, generator=g), b)
    head = {"lm_head.weight": model.lm_head.weight.detach()} if options.get("head") else {}
    task = options.get("task", "CAUSAL_LM")
    reference = BaseReference(base, base)
    adapter = Adapter.of(
        layers, head, tuple(name[: -len(".weight")] for name in head), task, reference
    )
    write_adapter(directory, adapter)
    return directory


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a1 to a5 of a model that is here, b1 to b3 and c1, c2 of others."""
    folder, model = tmp_path_factory.mktemp("ten"), tiny_llama()
    model.save_pretrained(folder / "base")
    here = str(folder / "base")
    write(folder / "a1", here, model)
    write(folder / "a2", here, model, uneven=True)
    write(folder / "a3" / "adapter", here, model, rank=20)  # as in a run
    write(folder / "a4", here, model, head=True)
    write(folder / "a5", here, model, task="SEQ_CLS")
    for name in ("b1", "b2", "b3"):
        write(folder / name, "org/b", model)
    write(folder / "c1", "org/c", model, rank=9)
    write(folder / "c2", "org/c", model, rank=9)
    return folder


NAMES = "a1", "b1", "c1", "a2", "b2", "a3", "b3", "c2", "a4", "a5"


def plans(folder: Path, *names: str, today: date = TODAY) -> list[BasePlan]:
    return plan_servers([facts(folder / name) for name in names], today)


def facts(directory: Path) -> Facts:
    with open_adapter(directory) as file:
        return facts_of(file)


def server(plan: BasePlan, name: str) -> ServerPlan:
    return next(server for server in plan.servers if server.name == name)


def test_ten_adapters_of_three_bases(ten: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", *(str(ten / name) for name in NAMES), "--serve"]) == 0
    out = capsys.readouterr().out
    told(out)
    assert run(["inspect", *(str(ten / name) for name in NAMES), "--serve", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["bases"]
    assert [(Path(g["base"]).name, g["task_type"], list(g["adapters"])) for g in groups] == [
        ("base", "CAUSAL_LM", ["a1", "a2", "a3", "a4"]),
        ("b", "CAUSAL_LM", ["b1", "b2", "b3"]),
        ("c", "CAUSAL_LM", ["c1", "c2"]),
        ("base", "SEQ_CLS", ["a5"]),
    ]
    for group in groups:
        for plan in group["servers"]:
            refused = [obstacle["adapter"] for obstacle in plan["obstacles"]]
            assert sorted(plan["adapters"] + refused) == sorted(group["adapters"])
            assert all(command in out for command in plan["commands"])
            assert all(obstacle["advice"] in out for obstacle in plan["obstacles"])


def test_command_lines(ten: Path) -> None:
    (plan,) = plans(ten, "a1", "a2", "a3")
    base, a1, a2, a3 = (str(ten / name) for name in ("base", "a1", "a2", "a3/adapter"))
    assert shlex.split(server(plan, "vLLM").commands[-1]) == [
        *("vllm", "serve", base, "--enable-lora", "--max-loras", "3", "--max-lora-rank", "32"),
        *("--lora-modules", f"a1={a1}", f"a2={a2}", f"a3={a3}"),
    ]
    llama = server(plan, "llama.cpp")
    assert llama.commands[1] == f"sora export {a2} -o a2.gguf --format gguf"
    assert llama.commands[-1].endswith(" --lora-scaled a1.gguf:0,a2.gguf:0,a3.gguf:0")
    assert json.loads(f"{{{llama.requests['a3']}}}") == {"lora": [{"id": 2, "scale": 1.0}]}


def test_a_name_that_begins_with_a_dash_is_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a directory's nor, as anybody wrote it into the file, the base model's."""
    monkeypatch.chdir(tmp_path)
    write(Path("-a"), "--trust-remote-code", tiny_llama())
    (plan,) = plans(Path(), "-a")
    commands = [command for server in plan.servers for command in server.commands]
    commands += [consumer.advice for consumer in facts(Path("-a")).consumers]
    words = re.split(r"[ =']", " ".join(commands))
    assert {"./-a", "./--trust-remote-code"} <= set(words)
    assert not {"-a", "--trust-remote-code"} & set(words)
    refused(capsys, "verify", "./-a")


def test_memory_that_vllm_reserves(ten: Path) -> None:
    """Two matrices at each layer, and at both embeddings of a llama, for each slot."""
    (plan,) = plans(ten, "a1", "a2")
    vllm, model = server(plan, "vLLM"), tiny_llama()
    layers = [m.weight.shape for m in model.modules() if isinstance(m, torch.nn.Linear)]
    numbers = sum(map(sum, layers)) + sum(model.get_input_embeddings().weight.shape)
    assert (vllm.reserved, vllm.at_least) == (2 * 8 * numbers * 2, False)
    (elsewhere,) = plans(ten, "b1", "b2")
    adapted = [model.get_submodule(f"model.layers.0.{kind}").weight.shape for kind in KINDS]
    least = server(elsewhere, "vLLM")
    assert (least.reserved, least.at_least) == (2 * 8 * 2 * sum(map(sum, adapted)) * 2, True)


def test_the_price_of_a_smaller_rank_is_what_prune_loses(ten: Path, tmp_path: Path) -> None:
    (plan,) = plans(ten, "a1", "a3")
    at_16, at_8 = server(plan, "vLLM").smaller
    assert (at_16.rank, at_8.rank, list(at_8.lost)) == (16, 8, ["a3"])
    assert at_8.reserved * 4 == server(plan, "vLLM").reserved
    assert run(["prune", str(ten / "a3"), "-o", str(tmp_path / "a3"), "--rank", "8"]) == 0
    before, pruned = facts(ten / "a3"), facts(tmp_path / "a3")
    lost = 1 - pruned.norm**2 / before.norm**2
    assert lost > 0.001
    assert at_8.lost["a3"] == pytest.approx(lost, rel=1e-3)
    (after,) = plan_servers([facts(ten / "a1"), pruned], TODAY)
    assert server(after, "vLLM").largest_rank == 8


def test_the_price_of_an_export_is_the_size_of_its_file(ten: Path, tmp_path: Path) -> None:
    copytree(ten / "a2", tmp_path / "a2")
    file = tmp_path / "a2" / ADAPTER_CONFIG
    config = json.loads(file.read_text()) | {"alpha_pattern": {}}
    file.write_text(json.dumps(config))
    (plan,) = plan_servers([facts(place) for place in (tmp_path / "a2", ten / "a4")], TODAY)
    a2, a4 = server(plan, "vLLM").obstacles
    assert (a2.step, a4.step) == ("exact", "merge")
    assert a4.bytes_then == (ten / "base" / "model.safetensors").stat().st_size
    assert run(["export", str(tmp_path / "a2"), "-o", str(tmp_path / "out")]) == 0
    written = (tmp_path / "out" / ADAPTER_WEIGHTS).stat().st_size
    assert a2.bytes_then is not None
    assert abs(written - a2.bytes_then) < 300  # in the header
    (after,) = plan_servers([facts(ten / "a1"), facts(tmp_path / "out")], TODAY)
    assert server(after, "vLLM").adapters == ["a1", "out"]


def test_a_base_in_a_gguf_file_is_served_by_llama_cpp_alone(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(bytes(1000))  # the bytes of a merged directory are others, and not known
    for name in ("a1", "a2"):
        write(tmp_path / name, str(base), tiny_llama())
    (plan,) = plans(tmp_path, "a1", "a2")
    vllm, llama = plan.servers
    assert not vllm.commands
    assert {o.price() for o in vllm.obstacles} == {
        "a copy of the whole base model, on a server of its own"
    }
    assert llama.commands[-1].startswith(f"llama-server -m {base} --lora-scaled ")


def test_names_and_directories_that_break_a_command(ten: Path, tmp_path: Path) -> None:
    model = tiny_llama()
    directories = [tmp_path / "x" / "r=8, b", tmp_path / "y" / "r 8 b", tmp_path / "y" / "r-8-b"]
    for directory in directories:
        write(directory, str(ten / "base"), model)
    (plan,) = plans(tmp_path, *(str(d.relative_to(tmp_path)) for d in directories))
    assert list(plan.adapters) == ["r-8-b", "r-8-b-2", "r-8-b-3"]
    assert server(plan, "vLLM").adapters == ["r-8-b-2", "r-8-b-3"]
    assert f"r-8-b-2={directories[1]}" in shlex.split(server(plan, "vLLM").commands[-1])
    assert "takes no ',' in a directory's name" in "\n".join(plan_lines([plan]))


def test_old_rules_are_told(
    ten: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (plan,) = plans(ten, "b1", today=date(2027, 11, 29))
    assert not server(plan, "vLLM").old
    (plan,) = plans(ten, "b1", today=date(2027, 11, 30))
    assert "    its rules were read on 2026-11-29, over a year ago" in "\n".join(plan_lines([plan]))
    assert len(old_rules(date(2028, 1, 1))) == len(PROGRAMS)
    assert old_rules(min(program.day for program in PROGRAMS)) == []
    later = SimpleNamespace(today=lambda: date(2028, 1, 1))
    monkeypatch.setattr("sora_cli.commands.inspect.date", later)
    for option in ([], ["--serve"]):
        assert run(["inspect", str(ten / "b1"), *option]) == 0
        assert "were read on 2026-11-29, over a year ago" in capsys.readouterr().out


def test_refusals(ten: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "inspect", ten / "a3", ten / "a3" / "adapter",
                                          "--serve")  # fmt: skip
    refused(capsys, "inspect", ten / "a1", "--serve",
                                                     "--modules")  # fmt: skip
