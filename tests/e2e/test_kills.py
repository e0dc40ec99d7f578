"""Every state in which a kill may leave a command's directory is opened, and gone on from.

`tests.replay` records the operations of one undisturbed run of a command, and builds every prefix
of them in this process. Real kills show that what they leave is in that log.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from methods.registry import low_rank_names
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.experiments.path.record import read_path
from sora_cli.experiments.sweep import engine, loop
from sora_cli.report import read_report
from sora_cli.run import prologue, results
from sora_cli.search import sizes
from sora_cli.search.evidence import read_certificate
from tests import blank, warm
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, pair_rows, timeless, train, write_recipe, write_rows
from tests.launched import launch, launch_commands
from tests.replay import (
    Answer,
    Ask,
    Log,
    Tree,
    answer,
    build,
    key,
    lasting,
    news,
    outline,
    read,
    recorded,
    replayed,
    shape,
)
from tests.shared_files import ROOT
from tests.sora_cli.commands.test_predict import ASKED, small_parts
from tests.sora_cli.experiments.auto.support import auto_recipe, recipe_with_inputs

TRAINING = {"epochs": 2, "model_dropout": 0.1, "evaluate": 3, "checkpoint": 2}
OPTIONS = {"adalora": ["method.target_r=2", "method.init_r=4", "method.t_init=1",
                       "method.t_final=2"]}  # fmt: skip


@dataclass
class Case:
    """A command whose operations are recorded.

    Attributes:
        again: the command that goes on; if it is refused, the next one.
        only: what tells apart the states to go on from.
    """

    root: Path
    words: list[str]
    again: Sequence[list[str]]
    result: Callable[[], object]
    asks: Sequence[Ask] = ()
    only: Callable[[Tree], object] = news
    exchange: bool = True
    log: Log = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        with recorded(self.root, exchange=self.exchange) as self.log:
            assert run(self.words) == 0


def _sound(_: Tree, answer: Answer) -> bool:
    """Tell whether a list has no damaged record, and no finished run without its own adapter."""
    for entry in json.loads(answer.said):
        gone = entry["changed"] or any("is gone" in note for note in entry["notes"])
        if entry["status"] == "damaged" or (entry["status"] == "finished" and gone):
            return False
    return answer.code == 0


def _list(root: Path) -> Ask:
    return Ask(["list", str(root), "--json"], may=_sound)


def _verify(run: Path, whole: Path) -> Ask:
    """Compare the adapter of a run with that of the undisturbed one: the same, another, or none."""
    weights = f"{run.name}/adapter/adapter_model.safetensors"
    same = (whole / "adapter" / "adapter_model.safetensors").read_bytes()

    def may(tree: Tree, answer: Answer) -> bool:
        return answer.code == (2 if weights not in tree else 0 if tree[weights] == same else 1)

    return Ask(["verify", str(run), str(whole)], (f"{run.name}/adapter",), may)


def _result(place: Path) -> object:
    report = read_report(place)
    return files_of(place / "adapter"), report and timeless(report)


def _checkpoints(tree: Tree) -> object:
    return frozenset((p, c) for p, c in lasting(tree).items() if "/checkpoints/step-" in p)


def _unfinished(tree: Tree, part: str, is_finished: Callable[[str], object]) -> object:
    """Return what tells states apart in which one of several parts is not finished.

    Another part in the same state is of the same kind. If all are finished, each state counts.

    Args:
        part: a pattern of the parts' paths.
    """
    inside = {p: match[0] for p in tree if (match := re.match(part, p))}
    left = {path for path in inside.values() if not is_finished(path)}
    if not left:
        return news(tree)
    others = {p: c for p, c in tree.items() if p not in inside}
    own = {p.removeprefix(inside[p]): tree[p] for p in inside if inside[p] in left}
    own = {p: c for p, c in own.items() if p.count("/") < 2}  # the rest is what `train` has
    return outline(others), outline(own)


def _is_complete(tree: Tree) -> Callable[[str], bool]:
    return lambda part: b'"status": "completed"' in (tree.get(f"{part}/report.json") or b"")


def _recipe(folder: Path, **blocks: Any) -> Path:
    blocks = {"training": TRAINING, "method": {"dropout": 0.1}} | blocks
    return write_recipe(folder, tiny_bert(num_labels=2), rows=24, **blocks)


def _train(folder: Path, method: str = "sora") -> Case:
    root = folder / "work"
    options = [f"method.name={method}", *OPTIONS.get(method, [])]
    words = ["train", str(_recipe(folder)), "--no-verify", f"output.dir={root / 'out'}", *options]
    case = Case(root, words, [[*words, "--resume"]], lambda: _result(root / "out"))
    whole = shutil.copytree(root / "out", folder / "whole")
    case.asks = [_list(root), Ask(["inspect", str(root / "out")]), _verify(root / "out", whole)]
    return case


def _forced(folder: Path, *, exchange: bool) -> Case:
    """The place of another run is taken: it has another seed."""
    root = folder / "work"
    words = ["train", str(_recipe(folder)), "--no-verify", f"output.dir={root / 'out'}"]
    assert run([*words, "training.seed=1"]) == 0
    again = [[*words, "--resume"], [*words, "--force"]]
    case = Case(root, [*words, "--force"], again, lambda: _result(root / "out"), exchange=exchange)
    whole = shutil.copytree(root / "out", folder / "whole")
    case.asks = [_list(root), Ask(["inspect", str(root / "out")]), _verify(root / "out", whole)]
    if not exchange:  # only what is set aside is new
        case.only = lambda tree: any(p.endswith(".replaced") for p in tree)
    return case


def _path(folder: Path) -> Case:
    root = folder / "work"
    block = {"vary": "method.threshold", "epochs": 1, "memorisation_rows": 8,
             "schedule": {"kind": "list", "values": [0, 0.02, 0.04]}}  # fmt: skip
    training = {"model_dropout": 0.1, "evaluate": "no"}
    recipe = _recipe(folder, path=block, training=training)
    words = ["path", str(recipe), f"output.dir={root / 'out'}"]

    def result() -> object:
        record, files = read_path(root / "out"), files_of(root / "out")
        assert record is not None
        stages = [stage.model_dump(exclude={"seconds"}) for stage in record.stages]
        return stages, {name: files[name] for name in files if "/adapter/" in name}

    def only(tree: Tree) -> object:
        record = json.loads(tree.get("out/path.json") or b"{}")
        finished = {f"out/{stage['directory']}" for stage in record.get("stages", [])}
        return _unfinished(tree, r"out/stages/\d+", finished.__contains__)

    asks = [_list(root), Ask(["pick", str(root / "out"), "--keep", "0.5"])]
    return Case(root, words, [words], result, asks, only)


def _search(folder: Path, recipe: Path, *options: str) -> Case:
    root = folder / "work"
    out = root / "out"
    words = ["auto", str(recipe), "--no-verify", f"output.dir={out}", "auto.sizes=1", *options]

    def result() -> object:
        report, certificate = read_report(out), read_certificate(out)
        adapters = [files_of(out / part / "adapter") for part in (".", "sizes/full", "sizes/1")]
        return adapters, certificate, report and (report.metrics, report.ranks)

    def only(tree: Tree) -> object:
        parts = {match[0] for p in tree if (match := re.match(r"out/sizes/\w+", p))}
        record = tree.get("out/auto.json") or b""
        recorded = {part for part in parts if f'"{part.removeprefix("out/")}"'.encode() in record}
        return _unfinished(tree, r"out/sizes/\w+", recorded.__contains__)

    case = Case(root, words, [words], result, only=only)

    def may(tree: Tree, answer: Answer) -> bool:
        return answer.code == (0 if "out/certificate.json" in tree else 2)

    weights = ("out/certificate.json", "out/adapter/adapter_model", "out/sizes/1/adapter/adapter_m")
    case.asks = [_list(root), Ask(["inspect", str(out)]),
                 Ask(["verify", str(out), "--certificate"], weights, may)]  # fmt: skip
    return case


def _parts_done(tree: Tree) -> object:
    """Return how far a search has come by its record."""
    record = json.loads(tree.get("out/auto.json") or b"{}")
    done = record.get("full"), record.get("screened"), record.get("candidates")
    return (*map(bool, done), "out/certificate.json" in tree)


SEARCHED = {"max_steps": 6, "checkpoint": 3, "evaluate": "no", "batch_size": 8}
ANSWERED = ["--max-differ", "60%"]
BASIS = ["--max-drop", "60pt", "auto.basis=answers"]


def _auto(folder: Path) -> Case:
    return _search(folder, auto_recipe(folder, training=SEARCHED))


def _unlabelled(folder: Path, *options: str) -> Case:
    recipe = recipe_with_inputs(folder)
    options = (*options, "--unlabelled", str(folder / "inputs.jsonl"), "training.max_steps=6",
               "training.checkpoint=3")  # fmt: skip
    case = _search(folder, recipe, *options)
    case.only, case.asks = _parts_done, case.asks[2:]  # the rest is asked of `auto`
    return case


def _origin(folder: Path) -> Path:
    """A finished run, which is pruned, exported and merged."""
    training = {"max_steps": 4, "evaluate": "no", "checkpoint": "no"}
    recipe = _recipe(folder, method={"r_max": 6, "threshold": 0.0}, training=training)
    write_rows(folder / "validation.jsonl", pair_rows(60, seed=1))
    train(recipe)
    return folder / "out"


def _healed(folder: Path) -> Case:
    root = folder / "work"
    words = ["prune", str(_origin(folder)), "-o", str(root / "out"), "--no-verify", "--mean-rank",
             "1.5", "--heal", "4", "training.checkpoint=2"]  # fmt: skip
    case = Case(root, words, [[*words, "--resume"]], lambda: _result(root / "out"))
    case.asks, case.only = [_list(root), Ask(["inspect", str(root / "out")])], _checkpoints
    return case


def _sizes(folder: Path) -> Case:
    root = folder / "work"
    words = ["prune", str(_origin(folder)), "-o", str(root / "out"), "--no-verify", "--max-drop",
             "40pt", "--heal", "2"]  # fmt: skip

    def result() -> object:
        record = json.loads((root / "out" / "certificate.json").read_bytes())
        return _result(root / "out"), record

    def only(tree: Tree) -> object:
        return _unfinished(tree, r"out/sizes/\d+", _is_complete(tree))

    asks = [_list(root), Ask(["inspect", str(root / "out")])]
    return Case(root, words, [[*words, "--resume"]], result, asks, only)


class _Here:
    """What stands for a process of a sweep: the run is done in this process."""

    pid = 0

    def __init__(self, command: list[str], **_: Any) -> None:
        self.code = run(command[3:])

    def poll(self) -> int:
        return self.code

    wait = poll


def _sweep(folder: Path) -> Case:
    root = folder / "work"
    _recipe(folder, training={"max_steps": 2, "evaluate": "no"})
    file = folder / "sweep.yaml"
    file.write_text(json.dumps({"recipe": "tiny.yaml", "grid": {"training.seed": [0]}}))
    words = ["sweep", str(file), f"output.dir={root / 'out'}", "--no-verify", "--jobs", "1"]

    def result() -> object:
        record = json.loads((root / "out" / "sweep.json").read_bytes())
        states = {each["name"]: each["state"] for each in record["runs"]}
        return states, [_result(root / "out" / name) for name in states]

    def only(tree: Tree) -> object:
        return _unfinished(tree, r"out/s\d", _is_complete(tree))

    return Case(root, words, [words], result, [_list(root)], only)


def _copies(folder: Path, command: str, *, forced: bool) -> Case:
    """A command that writes one file or directory beside which others of the user may stand."""
    root, origin = folder / "work", _origin(folder)
    out = root / ("out.safetensors" if command == "packed" else "out")
    words = ["export", str(origin), "-o", str(out)]
    if command == "merge":
        words[0] = "merge"
    if command == "packed":
        small = str(folder / "small")
        assert run(["prune", str(origin), "-o", small, "--bits", "4", "--rank", "2"]) == 0
        words = ["export", small, "-o", str(out), "--format", "packed"]
    if command == "pick":
        block = {"vary": "method.threshold", "schedule": {"kind": "list", "values": [0, 0.02]}}
        training = {"max_steps": 2, "evaluate": "no", "checkpoint": "no"}
        path = _recipe(folder, path={**block, "epochs": 1}, training=training)
        assert run(["path", str(path), f"output.dir={folder / 'path'}"]) == 0
        words = ["pick", str(folder / "path"), "--keep", "0.5", "-o", str(out)]
    if command == "predict":
        out = out.with_suffix(".csv")
        words = [
            "predict",
            str(origin),
            write_rows(folder / "asked.jsonl", ASKED[:8]),
            "-o",
            str(out),
        ]
    root.mkdir()
    if forced:
        assert run(words) == 0
        again = [[*words, "--force"]]
        words = again[0]
    else:
        again = [words]
    result = lambda: files_of(out) if out.is_dir() else out.read_bytes()  # noqa: E731
    ask = ["list", str(root)] if command == "predict" else ["inspect", str(out)]
    return Case(root, words, again, result, [Ask(ask)])


MAKERS: dict[str, Callable[[Path], Case]] = {
    "train": _train, "path": _path, "auto": _auto, "heal": _healed, "sizes": _sizes,
    "sweep": _sweep,
    "auto --max-differ": lambda folder: _unlabelled(folder, *ANSWERED),
    "auto by answers": lambda folder: _unlabelled(folder, *BASIS),
    "train --force": lambda folder: _forced(folder, exchange=True),
    "train --force, no exchange": lambda folder: _forced(folder, exchange=False),
}  # fmt: skip
COPIES = ["export", "merge", "packed", "pick", "predict"]
Cases = Callable[[str], Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return cache(lambda name: MAKERS[name](tmp_path_factory.mktemp(name.replace(" ", ""))))


@pytest.fixture
def told(record_property: Callable[[str, object], None]) -> Callable[[Case], None]:
    """Replay a case, and say what that was."""

    def tell(case: Case) -> None:
        figures = replayed(
            case.log, case.again, case.result,
            asks=case.asks, only=case.only,
        )  # fmt: skip
        record_property("replay", str(figures))
        sys.stdout.write(f"{figures}\n")

    return tell


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep runs here, ranks are not drawn, sizes are fewer, and parts are smaller."""
    monkeypatch.setattr(results, "plot_ranks", lambda *given: blank.save(None, given[2]))
    inside = SimpleNamespace(**{**vars(subprocess), "Popen": _Here})
    monkeypatch.setattr(engine, "subprocess", inside)
    monkeypatch.setattr(loop, "_PAUSE", 0)
    monkeypatch.setattr(sizes, "HEALED_DIVISORS", (2, 4))
    small_parts(monkeypatch)


def test_train(cases: Cases, told: Callable[[Case], None]) -> None:
    case = cases("train")
    told(case)
    complete = re.compile(r"out/checkpoints/step-(\d+)/complete.json")
    found = [[m[1] for p in tree if (m := complete.match(p))] for tree in case.log.states]
    newest = [max(steps, default="") for steps in found]
    assert newest == sorted(newest)  # no checkpoint goes before the next one is there
    assert len({*newest}) > 3
    assert max(map(len, found)) <= 3


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "train"])
def test_replay(cases: Cases, told: Callable[[Case], None], name: str) -> None:
    told(cases(name))


@pytest.mark.long
@pytest.mark.parametrize("method", sorted({*low_rank_names()} - {"sora"}))
def test_other_methods(
    cases: Cases, told: Callable[[Case], None], tmp_path: Path, method: str
) -> None:
    """They do with files what SoRA does, so only their checkpoints differ."""
    case = _train(tmp_path, method)
    assert case.log.kinds == cases("train").log.kinds
    case.only = _checkpoints
    told(case)


@pytest.mark.long
@pytest.mark.parametrize("name", ["heal", "sizes"])
def test_healing_does_with_files_what_training_does(cases: Cases, name: str) -> None:
    """But for the run of the chosen size, which is copied, and for its certificate."""
    kinds = cases(name).log.kinds
    own = {k for k in kinds if "sizes" not in k[1] and ".adapter.partial/" not in k[1]}
    assert own <= cases("train").log.kinds | cases("auto").log.kinds


@pytest.mark.long
@pytest.mark.parametrize("name", ["auto --max-differ", "auto by answers"])
def test_every_search_does_the_same_with_files(cases: Cases, name: str) -> None:
    assert cases(name).log.kinds == cases("auto").log.kinds


@pytest.mark.long
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("command", COPIES)
def test_copies(told: Callable[[Case], None], tmp_path: Path, command: str, forced: bool) -> None:
    case = _copies(tmp_path, command, forced=forced)
    told(case)
    if forced:  # what was there stays until the new one is there
        (name,) = case.log.states[0].keys() & {"out", "out.csv", "out.safetensors"}
        assert all(name in tree for tree in case.log.states)


@pytest.mark.long
def test_an_old_run_stays_until_the_new_one_is_there(cases: Cases) -> None:
    """The old report goes first: a finished run is told of its own adapter only."""
    stays = {"out/report.json", "out/adapter/adapter_model.safetensors"}
    assert all(stays <= tree.keys() for tree in cases("train --force").log.states)


@pytest.mark.long
@pytest.mark.parametrize("name", ["path", "auto"])
def test_starting_over_goes_on(cases: Cases, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while old work is deleted leaves what the same command still knows as its own."""

    def stop(*_: Any) -> None:
        raise SoraError("it would train now")

    case = cases(name)
    monkeypatch.setattr(prologue, "prepare", stop)
    root, words = case.log.root, [*case.words, "--force"]
    build(root, case.log.states[-1])
    with recorded(root) as log:
        assert run(words) == 2
    for tree in {key(tree): tree for tree in log.states}.values():
        build(root, tree)
        assert answer(words).error == ("error: it would train now",)
        assert lasting(read(root)).keys() <= {"out"}


REAL = [
    ("train", "state.safetensors", 2),
    ("path", "stages/01/.adapter", 1),
    ("auto", "sizes/1/.report.json", 2),
    ("heal", "/.adapter", 1),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind", "number"), REAL)
def test_a_real_kill(cases: Cases, name: str, kind: str, number: int) -> None:
    """The process of a sweep is killed in `test_sweep.py`."""
    case = cases(name)
    root, states = case.log.root, case.log.states
    build(root, states[-1])
    expected = case.result()
    build(root, states[0])
    done: Any = subprocess.run(
        [warm.python(warm.OURS), "-m", "tests.replay", kind, str(number), *case.words],
        env={**warm.ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert shape(read(root)) in case.log.shapes
    assert answer(case.again[0]).code == 0
    assert case.result() == expected


@pytest.mark.long
def test_a_real_kill_of_two_processes(cases: Cases) -> None:
    case = cases("train")
    root = case.log.root
    build(root, {})
    done = launch("-m", "tests.replay", "state.safetensors", "2", *case.words)
    assert "SIGKILL" in done.stderr, done.stderr[-2000:]
    assert shape(read(root)) in case.log.shapes
    two = root.parent / "two"
    whole = [word.replace(str(root / "out"), str(two)) for word in case.words]
    commands = [{"words": words, "stop": None} for words in (whole, *case.again)]
    launch_commands(root.parent, commands)
    assert _result(root / "out") == _result(two)
