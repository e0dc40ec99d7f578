"""`sora sweep` with real processes: failures, a lost run, an interruption, Ray."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from methods import registry
from sora_cli.app import run
from sora_cli.core.lock import FILE_NAME as LOCK
from sora_cli.experiments.sweep.record import FILE_NAME
from sora_cli.report import read_report
from tests import warm
from tests.helpers_models import tiny_bert
from tests.helpers_runs import timeless, train, write_recipe
from tests.present import present
from tests.sora_cli.recipe.test_plugins import METHOD

_PATIENCE = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_recipe(folder, tiny_bert())
    return folder


@pytest.fixture(autouse=True)
def _same_variables() -> Iterator[None]:
    """Take back what Ray sets: with other variables a run is no fork, but a new process."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def forking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ray's workers fork the runs' processes, too: they are processes of Python's own."""
    file = tmp_path / "site" / "sitecustomize.py"
    file.parent.mkdir()
    file.write_text(f"""\
import sys
if any(word.endswith("/default_worker.py") for word in sys.orig_argv):
    sys.executable = {warm.python(warm.OURS)!r}
""")
    monkeypatch.setenv("PYTHONPATH", str(file.parent))


def write(folder: Path, **blocks: Any) -> tuple[Path, Path]:
    """A sweep file, and the directory of its runs."""
    path = folder / f"sweep{len(list(folder.glob('sweep*.yaml')))}.yaml"
    path.write_text(yaml.safe_dump({"recipe": "tiny.yaml", **blocks}, sort_keys=False))
    return path, folder / path.stem


def sweep(path: Path, directory: Path, *options: str) -> int:
    return run(["sweep", str(path), f"output.dir={directory}", "--no-verify", *options])


def states(directory: Path) -> dict[str, str]:
    record = json.loads((directory / FILE_NAME).read_text())
    return {each["name"]: each["state"] for each in record["runs"]}


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError


def process_of(directory: Path) -> int | None:
    """The process that trains in a directory and has written a checkpoint there."""
    if not list((directory / "checkpoints").glob("step-*")):
        return None
    try:
        return int(json.loads((directory / LOCK).read_text())["pid"])
    except (OSError, ValueError):
        return None


@pytest.mark.versions
def test_a_sweep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "gated": {"method.name": "sora"},
        "fixed": {"method.name": "lora", "method.r": {"of": "gated", "take": "components"}},
        "broken": {"model.path": "/nowhere"},
    }
    path, directory = write(folder, cases=cases, set={"training.max_steps": 3})
    assert sweep(path, directory, "--jobs", "2") == 1
    assert states(directory) == {"gated": "finished", "fixed": "finished", "broken": "failed"}
    first, second = (read_report(directory / name) for name in ("gated", "fixed"))
    assert first is not None
    assert second is not None
    live = sum(ranks.end for ranks in first.ranks.values())
    assert second.recipe["method"]["r"] == live > 0
    assert second.environment.threads == max(len(os.sched_getaffinity(0)) // 2, 1)
    printed = capsys.readouterr()
    assert "2 of 3 runs finished, 1 not" in printed.out
    assert "there is no model at /nowhere" in printed.out
    assert "[2/3]" in printed.err
    assert sweep(path, directory, "--json") == 1
    printed = capsys.readouterr()
    assert "2 of 3 runs are finished already" in printed.err
    assert json.loads(printed.out) == json.loads((directory / "sweep.json").read_text())


def test_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, directory = write(folder, grid={"training.seed": [0, 1]})
    assert sweep(path, directory, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "2 runs left" in out
    assert not directory.exists()


def test_measured_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, directory = write(folder, grid={"training.seed": [0, 1]})
    assert sweep(path, directory, "--dry-run", "--measure") == 0
    out = capsys.readouterr().out
    assert "2 runs left" in out
    assert "?" not in out
    assert not directory.exists()


WAITS = """
import time
from pathlib import Path
from sora_cli.train.callback import MethodCallback
from transformers import TrainerCallback

inner = MethodCallback.on_optimizer_step


def waits(self, args, state, control, **kwargs):
    inner(self, args, state, control, **kwargs)
    here = Path(__file__).with_name(f"passed-{state.global_step}")
    while state.global_step in (5, 9) and not here.exists():
        time.sleep(0.05)


MethodCallback.on_optimizer_step = waits


class Waits(TrainerCallback):
    name = "waits"
"""
"""Code that holds a run in two of its steps until the test lets it pass."""


@pytest.mark.long
def test_lost_and_interrupted(folder: Path, tmp_path: Path) -> None:
    """A run's process is killed: it is resumed. The sweep is: the same command continues it."""
    code = tmp_path / "waits.py"
    code.write_text(WAITS, encoding="utf-8")
    steps = {"training.max_steps": 12, "training.checkpoint": 4, "training.evaluate": "no"}
    path, directory = write(folder, grid={"training.seed": [3]}, set=steps)
    command = [warm.python(warm.OURS), "-m", "sora_cli", "sweep", str(path)]
    command += [f"output.dir={directory}", "--no-verify", "--code", str(code), "--threads", "1"]
    with subprocess.Popen(command, env=warm.ENVIRONMENT) as process:
        first = wait_for(lambda: process_of(directory / "s3"))
        os.kill(first, signal.SIGKILL)
        (tmp_path / "passed-5").touch()
        wait_for(lambda: (report := read_report(directory / "s3")) and report.resumed)
        second = wait_for(
            lambda: (
                (directory / "s3" / "checkpoints" / "step-000008").exists()
                and process_of(directory / "s3")
            )
        )
        assert second != first
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: b"SIGTERM" in (directory / "logs" / "s3.log").read_bytes())
        (tmp_path / "passed-9").touch()
        assert process.wait(_PATIENCE) == 143
    assert states(directory) == {"s3": "interrupted"}
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
    assert subprocess.run(command, check=False, env=warm.ENVIRONMENT).returncode == 0
    assert states(directory) == {"s3": "finished"}
    report = present(read_report(directory / "s3"))
    assert len(report.resumed) == 2
    words = [f"{key}={value}" for key, value in steps.items()]
    straight = train(folder / "tiny.yaml", *words, "training.seed=3", f"output.dir={folder / 'st'}")
    assert timeless(report) == timeless(straight)


@pytest.mark.long
@pytest.mark.usefixtures("forking")
def test_a_lost_machine(folder: Path, tmp_path: Path) -> None:
    """A node of a Ray cluster dies: its run goes on from the checkpoint on the other node."""
    import psutil
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    code = tmp_path / "waits.py"
    code.write_text(WAITS, encoding="utf-8")
    steps = {"training.max_steps": 12, "training.checkpoint": 4, "training.evaluate": "no"}
    path, directory = write(folder, grid={"training.seed": [3, 4]}, set=steps)
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False)
        node = cluster.add_node(num_cpus=1)
        command = [warm.python(warm.OURS), "-m", "sora_cli", "sweep", str(path),
                   f"output.dir={directory}", "--engine", "ray", "--address", cluster.address,
                   "--threads", "1", "--no-verify", "--code", str(code)]  # fmt: skip
        with subprocess.Popen(
            command, env=warm.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            for name in ("s3", "s4"):
                wait_for(lambda name=name: process_of(directory / name))
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            # its agents stay, which tell the driver the last lines of the raylet's log
            ours = [p for p in raylet.children(recursive=True) if not p.name().endswith("Agent")]
            words = [word for p in ours for word in p.cmdline()]
            (lost,) = {n for n in ("s3", "s4") if f"output.dir={directory / n}" in words}
            for each in (raylet, *ours):
                each.kill()
            for step in (5, 9):
                (tmp_path / f"passed-{step}").touch()
            printed, told = process.communicate(timeout=_PATIENCE)
    finally:
        cluster.shutdown()
    assert process.returncode == 0
    assert states(directory) == {"s3": "finished", "s4": "finished"}
    for name in ("s3", "s4"):
        report = present(read_report(directory / name))
        assert [each.step for each in report.resumed] == ([4] if name == lost else [])
    (line,) = [line for line in told.splitlines() if "lost" in line]
    assert re.fullmatch(
        rf"\[\d/2\]  {lost}: lost on node {node.node_id[:8]} \(\S+, {node.node_ip_address}\) after "
        r".+; it goes on where there is room", line,
    )  # fmt: skip
    assert "raylet" not in printed + told
    assert printed.startswith("2 of 2 runs finished")
    assert not [p for p in (directory / "logs").iterdir() if p.suffix != ".log"]


@pytest.mark.long
@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.versions)])
def test_a_plugins_option_varies(
    folder: Path,
    engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--code` is loaded for the plan, for measuring, and by each run's process.

    Without an address no cluster is joined, whatever Ray would find.
    """
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # none is there
    monkeypatch.setattr(registry, "_REGISTERED", {})
    code = tmp_path / "mine.py"
    code.write_text(METHOD, encoding="utf-8")
    path, directory = write(
        folder,
        set={"method.name": "mine", "training.max_steps": 2},
        grid={"method.boost": [0.5, 2.0]},
    )
    options = ["--code", str(code), "--engine", engine, "--threads", "1"]
    if engine == "local":
        assert sweep(path, directory, "--dry-run", "--measure", *options) == 0
        assert "?" not in capsys.readouterr().out
    handler = signal.getsignal(signal.SIGTERM)
    assert sweep(path, directory, *options) == 0
    assert signal.getsignal(signal.SIGTERM) is handler  # Ray's own would end a sweep at once
    assert json.loads((directory / FILE_NAME).read_text())["engine"] == engine
    reports = [read_report(directory / name) for name in states(directory)]
    assert [r and r.recipe["method"]["boost"] for r in reports] == [0.5, 2.0]
    assert set(states(directory).values()) == {"finished"}


@pytest.mark.long
def test_cases_that_begin_with_another_cases_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"method.name": "lora", "method.r": 4}
    path, directory = write(
        folder,
        set={"training.max_steps": 10, "training.evaluate": "no"},
        grid={"training.seed": [0, 1]},
        cases={
            "lora": {**method, "training.keep_checkpoints": [0.8]},
            "cut": {"from": "lora", "start.mean_rank": 1, "training.max_steps": 0},
            "fork": {"from": {"case": "lora", "step": 0.8}, "method.name": "cut",
                     "method.r_max": 4, "method.target_r": 1},
        },
    )  # fmt: skip
    assert sweep(path, directory, "--jobs", "2") == 0
    assert set(states(directory).values()) == {"finished"}
    reports = {name: read_report(directory / name) for name in states(directory)}
    for name, report in reports.items():
        assert report is not None
        assert (report.start is None) == name.startswith("lora")
    assert run(["sweep", str(path), f"output.dir={directory}", "--dry-run"]) == 0
    assert "all runs are finished" in capsys.readouterr().out
    assert run(["compare", str(directory), "--format", "csv"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len([row for row in rows if row.count(",") > 3]) == 1 + 3  # a row a case, two seeds each
