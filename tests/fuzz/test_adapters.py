"""Damaged adapter directories: refused politely, or read as PEFT itself reads them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from peft import AdaLoraConfig, LoraConfig, get_peft_model

from sora_cli.adapter.directory import write_adapter
from sora_cli.app import run
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, SORA_FILE
from tests.fuzz.damage import Damaged, damaged
from tests.fuzz.outcome import Outcome, cases, outcome
from tests.fuzz.peft_reference import (
    Loaded,
    Refused,
    assert_agree,
    draws_at_random,
    load,
    load_plainly,
)
from tests.helpers_adapters import adapt, fill_peft
from tests.helpers_models import tiny_bert, tiny_gpt2

LONG, SHORT = 500, 100
TARGETS = ["query", "value"]
COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "--json"),
    "table": ("inspect", "--modules"),
    "prune": ("prune",),
    "export": ("export", "--no-verify"),
    "float32": ("export", "--no-verify", "--dtype", "float32"),
    "padded": ("export", "--no-verify", "--layout", "padded"),
}
PEFT_OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2, "lora_alpha": 8},
    "rslora": {"r": 3, "lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"value": 5}},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"query": 2, r".*\.1\..*value": 3},
        "alpha_pattern": {r"layer\.0\..*": 3},
    },
}


@dataclass
class World:
    """Real adapters by name, the base models they belong to, and what became of all cases."""

    sources: dict[str, dict[str, bytes]]
    bases: dict[str, Any]
    root: Path
    counts: dict[str, int] = field(default_factory=dict)

    def base(self, source: str) -> Any:
        """The model that an adapter belongs to."""
        return self.bases["gpt2" if source.startswith("gpt2") else "bert"]

    def count(self, what: str) -> None:
        """One more of these."""
        self.counts[what] = self.counts.get(what, 0) + 1


@pytest.fixture(scope="module", autouse=True)
def _impatient() -> Iterator[None]:
    """Expressions that take forever are stopped sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sora_cli.adapter.peft.patterns.TIME_LIMIT", 1)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("fuzz")
    bert = tiny_bert()
    write_adapter(root / "ours", adapt(bert, root / "base", head=("classifier",)))
    tuned = {name: LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS, **options)
             for name, options in PEFT_OPTIONS.items()}  # fmt: skip
    tuned["adalora"] = AdaLoraConfig(
        task_type="SEQ_CLS",
        target_modules=TARGETS,
        init_r=4,
        target_r=2,
        total_step=10,
        lora_alpha=6,
    )
    for name, config in tuned.items():
        model = fill_peft(get_peft_model(tiny_bert(), config))
        if name == "adalora":
            _cut(model)
        model.save_pretrained(root / name)
    config = LoraConfig(
        r=2, lora_alpha=5, target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True
    )
    fill_peft(get_peft_model(tiny_gpt2(), config)).save_pretrained(root / "gpt2")
    return World(
        {name: _files(root / name) for name in ("ours", "gpt2", *tuned)},
        {"bert": tiny_bert().double(), "gpt2": tiny_gpt2().double()},
        root,
    )


def _cut(model: Any) -> None:
    """Let AdaLoRA's allocator have kept 0 to 3 components of each module."""
    names = [name for name, _ in model.base_model.model.named_parameters() if "lora_E" in name]
    model.peft_config["default"].rank_pattern = {
        name: [j < i % 4 for j in range(4)] for i, name in enumerate(names)
    }


def _files(directory: Path) -> dict[str, bytes]:
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, SORA_FILE)
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def test_without_damage_all_agree(world: World) -> None:
    for source, files in world.sources.items():
        for command in COMMANDS:
            assert _check(world, Damaged(source, dict(files)), command).good


@given(data=st.data(), command=st.sampled_from(sorted(COMMANDS)))
@cases(SHORT)
def test_damaged_adapters(world: World, data: st.DataObject, command: str) -> None:
    _check(world, data.draw(damaged(world.sources)), command)


@pytest.mark.long
def test_many_damaged_adapters(world: World, record_property: Any) -> None:
    @given(data=st.data(), command=st.sampled_from(sorted(COMMANDS)))
    @cases(LONG)
    def check(data: st.DataObject, command: str) -> None:
        _check(world, data.draw(damaged(world.sources)), command)

    world.counts.clear()
    check()
    for name, number in world.counts.items():
        record_property(name, number)
    print(world.counts)  # noqa: T201
    assert world.counts["compared"] > LONG // 10


def _check(world: World, case: Damaged, command: str) -> Outcome:
    """Run a command on a damaged directory and hold what comes of it against PEFT."""
    world.count("cases")
    with tempfile.TemporaryDirectory(dir=world.root) as name:
        place = Path(name)
        directory, out = place / "adapter", place / "out"
        _write(case, directory)
        before = sorted(place.rglob("*"))
        words = [*COMMANDS[command], str(directory)]
        reads = command in {"inspect", "table"}
        words += [] if reads else ["-o", str(out)]
        result = outcome(lambda: run(words))
        if not result.good:
            world.count("refused")
            assert sorted(place.rglob("*")) == before
            return result
        world.count("accepted")
        after = [path for path in sorted(place.rglob("*")) if path not in before]
        written = [] if reads else [out, *(out / name for name in _WRITTEN)]
        assert after == sorted(written)
        if command != "table":
            _compare(world, world.base(case.source), directory, command, result)
        return result


_WRITTEN = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, SORA_FILE)


def _compare(world: World, base: Any, directory: Path, command: str, result: Outcome) -> None:
    expected = load(base, directory)
    if isinstance(expected, Refused) or draws_at_random(directory):
        expected = load_plainly(base, directory)
    if command == "inspect":
        if isinstance(expected, Loaded):
            _compare_norms(json.loads(result.out), expected)
            world.count("compared")
        return
    out = directory.with_name("out")
    actual = load(base, out)
    if isinstance(expected, Refused) and isinstance(actual, Refused):
        world.count("of another model")
        return
    assert isinstance(actual, Loaded), f"only the input loads: {actual.reason}"
    assert isinstance(expected, Loaded), f"only the output loads: {expected.reason}"
    short = json.loads((out / SORA_FILE).read_text())["lineage"][-1].get("dtype") in {
        "bfloat16",
        "float16",
    }
    assert_agree(actual, expected, within=0.02 if short else 1e-4, forward=not short)
    world.count("compared")


def _compare_norms(facts: dict[str, Any], expected: Loaded) -> None:
    """What inspect says of each module's update; modules PEFT finds no place for are not held."""
    for path, update in expected.updates.items():
        spectrum = facts["spectra"].get(path)
        norm = 0.0 if spectrum is None else spectrum["norm"]
        meant = float(torch.linalg.vector_norm(update))
        assert abs(norm - meant) <= 1e-4 * meant + 1e-20, f"{path}: {norm} is not {meant}"


def _write(case: Damaged, directory: Path) -> None:
    directory.mkdir()
    elsewhere = directory.with_name("elsewhere")
    elsewhere.mkdir()
    for name in {*case.files, *case.places}:
        path, content = directory / name, case.files.get(name, b"")
        match case.places.get(name):
            case None:
                path.write_bytes(content)
            case "directory":
                path.mkdir()
            case "loop":
                path.symlink_to(path)
            case "pipe":
                os.mkfifo(path)
            case "link":
                (elsewhere / name).write_bytes(content)
                path.symlink_to(elsewhere / name)
