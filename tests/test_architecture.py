"""The few rules that keep the two packages apart, held against the source itself.

A test is a rule, not a file: it parses nothing anew, and its failure names all places at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from inspect import unwrap
from pathlib import Path

import pytest

from methods.registry import method_names
from sora_cli.app import COMMANDS, build
from tests.shared_files import ROOT

TOOL = sorted((ROOT / "sora_cli").rglob("*.py"))
MATHEMATICS = sorted((ROOT / "methods").rglob("*.py"))
ALL = (*TOOL, *MATHEMATICS)


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def _nodes(file: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(_text(file))))


def _place(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"


def _imported(file: Path) -> set[str]:
    names = set()
    for node in _nodes(file):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def _literals(node: ast.AST) -> set[str]:
    constants = (n for n in ast.walk(node) if isinstance(n, ast.Constant))
    return {c.value for c in constants if isinstance(c.value, str)}


LAYERS = (
    {"core"},
    {"gguf", "recipe", "report"},
    {"data"},
    {"tasks"},
    {"model"},
    {"adapter", "train"},
    {"merge", "run"},
    {"search", "propose"},
    {"verify", "experiments", "use"},
    {"commands"},
    {"app"},
    {"__main__"},
)
"""The rooms of `sora_cli`, from the ground up; `methods/` is below them all."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def _modules(node: ast.AST) -> list[list[str]]:
    """Return the modules of `sora_cli` that an import statement names, as lists of words."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return []
    parts = [name.split(".") for name in names]
    return [part for part in parts if part[0] == "sora_cli" and len(part) > 1]


def test_every_module_stands_in_a_room() -> None:
    rooms = {file.relative_to(ROOT / "sora_cli").parts[0].removesuffix(".py") for file in TOOL}
    assert rooms - {"__init__"} == LEVEL.keys()


def test_imports_go_down() -> None:
    """Every import counts, also inside functions and for type checking only."""
    upwards = []
    for file in TOOL:
        own = file.relative_to(ROOT / "sora_cli").with_suffix("").parts[0]
        if own == "__init__":
            continue
        for node in _nodes(file):
            others = {module[1] for module in _modules(node)} & LEVEL.keys() - {own}
            upwards += [f"{_place(file, node)}: {o}" for o in others if LEVEL[o] >= LEVEL[own]]
    assert not upwards


@pytest.mark.parametrize("room", ["adapter/peft", "train/checkpoint", "data/builtin"])
def test_inner_rooms_stand_alone(room: str) -> None:
    outer, inner = room.split("/")
    for file in (ROOT / "sora_cli" / room).glob("*.py"):
        for module in (m for node in _nodes(file) for m in _modules(node) if m[1] == outer):
            assert module[2] == inner, f"{file}: {module}"


def test_experiments_build_on_each_other() -> None:
    order = ["path", "auto", "compare", "report", "sweep", "listing"]
    for file in (ROOT / "sora_cli" / "experiments").glob("*/*.py"):
        own = order.index(file.parent.name)
        for module in (m for node in _nodes(file) for m in _modules(node)):
            assert module[1] != "experiments" or order.index(module[2]) <= own, f"{file}: {module}"


def _at_once(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported."""
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not later and "TYPE_CHECKING" not in ast.dump(getattr(child, "test", child)):
            yield child
            yield from _at_once(child)


def test_no_import_goes_in_a_circle() -> None:
    """So each module can be the first that a command imports."""
    known = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in ALL}
    imported: dict[str, set[str]] = {name: set() for name in known}
    for name, file in known.items():
        for node in _at_once(ast.parse(_text(file))):
            if isinstance(node, ast.Import):
                imported[name] |= {alias.name for alias in node.names} & known.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                imported[name] |= (names | {node.module}) & known.keys()
    TopologicalSorter(imported).prepare()  # raises CycleError, with the circle


SHARED = {"options", "completion"}
"""What all commands may import of their room: flags, and what the Tab key offers for them."""


def _in_commands(pattern: str) -> set[str]:
    return {file.stem for file in (ROOT / "sora_cli" / "commands").glob(pattern)}


def test_a_command_is_one_file() -> None:
    homes = [unwrap(build(name).callback).__module__ for name in COMMANDS]
    assert len(homes) == len(set(homes))
    files = {f"sora_cli.commands.{name}" for name in _in_commands("[a-z]*.py") - SHARED}
    assert files == set(homes)


def test_no_command_imports_another() -> None:
    allowed = SHARED | _in_commands("_[a-z]*.py")
    for file in (ROOT / "sora_cli" / "commands").glob("*.py"):
        for module in (m for node in _nodes(file) for m in _modules(node)):
            assert module[1] != "commands" or module[2] in allowed, f"{file}: {module}"


def test_the_mathematics_does_not_know_the_tool() -> None:
    foreign = {"sora_cli", "transformers", "yaml", "typer", "datasets"}
    found = [f"{file.name}: {name}" for file in MATHEMATICS for name in _imported(file) & foreign]
    for file in MATHEMATICS:
        for node in _nodes(file):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in ("print", "exit"):
                found.append(_place(file, node))
    assert not found


def test_the_tool_decides_nothing_by_a_methods_name() -> None:
    names = set(method_names())
    words = {"sora", "head", "full"}  # with other meanings, too, so only comparisons count
    found = []
    for file in TOOL:
        for node in _nodes(file):
            named = isinstance(node, ast.Constant) and node.value in names - words
            if named or (
                isinstance(node, ast.Compare | ast.match_case) and _literals(node) & names
            ):
                found.append(_place(file, node))
    assert not found


def test_files_stay_small() -> None:
    lines = {str(file.relative_to(ROOT)): len(_text(file).splitlines()) for file in ALL}
    assert not {name: number for name, number in lines.items() if number > 500}


DEVICE = ROOT / "sora_cli" / "core" / "device.py"
DEVICES = {f"torch.{name}" for name in ("cuda", "xpu", "mps", "accelerator")}
CUDAS = {"benchmarks/gpu/__main__.py": "torch.cuda"}  # the size of the card


def _asks_for_the_device(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and ast.unparse(node) in DEVICES:
        return ast.unparse(node)
    imported = isinstance(node, ast.Import | ast.ImportFrom)
    names = {alias.name for alias in node.names} if imported else set()
    return next(iter(names & {"PartialState", *DEVICES}), None)


def test_one_module_asks_for_the_device() -> None:
    others = {*ALL, *(ROOT / "benchmarks").rglob("*.py")} - {DEVICE}
    found = [
        _place(file, node)
        for file in others
        for node in _nodes(file)
        if (name := _asks_for_the_device(node)) and CUDAS.get(str(file.relative_to(ROOT))) != name
    ]
    assert not found


def test_nothing_is_pickled() -> None:
    for file in ALL:
        assert not _imported(file) & {"pickle", "dill", "joblib", "cloudpickle"}, file
        assert "torch.save(" not in _text(file), file
        assert "torch.load(" not in _text(file), file


INTERNALS = {
    "methods/torch_internals.py",
    "sora_cli/experiments/sweep/ray_internals.py",
    "sora_cli/model/transformers_internals.py",
    "sora_cli/tasks/transformers_internals.py",
    "sora_cli/train/checkpoint/trainer_internals.py",
    "sora_cli/experiments/sweep/search.py",  # optuna's, one of them
}
"""The files that may use private names of a library, one for each library or part of it."""
PUBLIC = {"os._exit"}
UNDERSCORED = {"transformers.core_model_loading", "transformers.conversion_mapping"}
"""Modules that are internal, though their names do not say so."""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _own_names() -> set[str]:
    """Every private function, class and attribute that this project defines."""
    names = set()
    for file in ALL:
        for node in _nodes(file):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)  # a field of a dataclass, among others
    return names


def _foreign(node: ast.AST, known: set[str]) -> Iterator[str]:
    """Yield private names that a piece of code takes from another project.

    Args:
        known: private names of this project.
    """
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in (
        "sora_cli",
        "methods",
    ):
        module = node.module or ""
        names = [*module.split("."), *(alias.name for alias in node.names)]
        if module in UNDERSCORED or any(_is_private(name) for name in names):
            yield module
    elif isinstance(node, ast.Attribute) and _is_private(node.attr):
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if not (own and node.attr in known) and ast.unparse(node) not in PUBLIC:
            yield ast.unparse(node)


def test_private_names_of_libraries_stand_in_one_file_each() -> None:
    """As far as the syntax tells: an attribute of another object, or one we define nowhere."""
    own = _own_names()
    others = (file for file in ALL if str(file.relative_to(ROOT)) not in INTERNALS)
    found = [
        f"{_place(file, node)}: {name}"
        for file in others
        for node in _nodes(file)
        for name in _foreign(node, own)
    ]
    assert not found


TOUCHING = {
    "copyfile", "copytree", "rmtree", "save_file", "save_pretrained", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip
"""Functions that write, replace or remove a file, by whatever module they are named."""
OF_OS = {"os.remove", "os.rename", "os.replace", "os.truncate", "shutil.move"}
MODE = re.compile(r"(?=.*[wax+])[rwaxbt+]+")
ATOMIC = "sora_cli/core/atomic.py"
UNTOUCHED = {
    "in a directory or under a name that core/atomic handed out": {
        "sora_cli/adapter/companions.py": {"copyfile", "copytree", "save_pretrained"},
        "sora_cli/adapter/card.py": {"write_bytes"},
        "sora_cli/adapter/metadata.py": {"write_text"},
        "sora_cli/adapter/packed.py": {"write_bytes"},
        "sora_cli/commands/pick.py": {"copytree"},
        "sora_cli/data/builtin/tiny_clip.py": {"save_pretrained"},
        "sora_cli/data/builtin/tiny_llama.py": {"save_pretrained"},
        "sora_cli/data/builtin/tiny_t5.py": {"save_pretrained"},
        "sora_cli/data/builtin/tiny_vit.py": {"save_pretrained"},
        "sora_cli/data/tokens.py": {"open"},
        "sora_cli/gguf/lora_file.py": {"open"},
        "sora_cli/gguf/merged_file.py": {"open"},
        "sora_cli/merge/merge.py": {"copyfile", "write_text"},
        "sora_cli/merge/write.py": {"open"},
        "sora_cli/model/tensors.py": {"open"},
        "sora_cli/run/stored.py": {"save_file", "save_pretrained"},
        "sora_cli/search/heal.py": {"copytree"},
        "sora_cli/train/checkpoint/files.py": {"save_file"},
        "sora_cli/use/formats.py": {"open"},
    },
    "in a temporary directory of the system": {
        "sora_cli/commands/predict.py": {"open"},
        "sora_cli/merge/base.py": {"rmtree", "save_pretrained"},
        "sora_cli/verify/contract_trial.py": {"save_pretrained"},
        "sora_cli/verify/reload.py": {"save_file", "write_text"},
    },
    "the lock's file, whose content only names its process": {
        "sora_cli/core/lock.py": {"write_text"},
    },
    "a log, to which lines are added": {"sora_cli/experiments/sweep/engine.py": {"open"}},
    "an empty file that says stop": {"sora_cli/experiments/sweep/ray_engine.py": {"touch"}},
    "in a checkpoint of the stock Trainer, which writes it so": {
        "sora_cli/train/callback.py": {"save_file"},
    },
    "renames tensors, not files": {
        "sora_cli/adapter/todays_names.py": {"rename"},
        "sora_cli/merge/names.py": {"rename"},
    },
}
"""What may stand outside of core/atomic: the reason, the file, the functions."""


def _touched(node: ast.AST) -> str | None:
    """Return the name of the function if a piece of code writes, replaces or removes a file."""
    name = getattr(node, "attr", None) or getattr(node, "id", None)
    if name in TOUCHING or (isinstance(node, ast.Attribute) and ast.unparse(node) in OF_OS):
        return name
    if not isinstance(node, ast.Call):
        return None
    called = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
    given = [*node.args, *(k.value for k in node.keywords)]
    if called in {"open", "fdopen"} and any(
        isinstance(g, ast.Constant) and isinstance(g.value, str) and MODE.fullmatch(g.value)
        for g in given
    ):
        return called
    # a text's replace() takes two arguments, that of dataclasses takes keywords
    one = isinstance(node.func, ast.Attribute) and len(node.args) == 1 and not node.keywords
    return called if one and called in {"rename", "replace"} else None


def test_files_are_written_and_removed_by_core_atomic() -> None:
    """An exception that nothing needs any more is to go, too."""
    found: dict[str, set[str]] = {}
    for file in ALL:
        names = {name for node in _nodes(file) if (name := _touched(node))}
        if names:
            found[str(file.relative_to(ROOT))] = names
    assert found.pop(ATOMIC) == {"open", "rename", "replace", "rmtree", "unlink"}
    assert found == {file: names for files in UNTOUCHED.values() for file, names in files.items()}


@pytest.mark.parametrize(
    "line",
    [
        "file.unlink()", "shutil.rmtree(folder)", "finalize(self, shutil.rmtree, folder)",
        "a.replace(b)", "a.rename(b)", "os.replace(a, b)", "os.remove(a)", "a.open('w')",
        "open(a, mode='ab')", "a.open('r+b')", "a.write_text('x')", "save_file(tensors, a)",
    ],
)  # fmt: skip
def test_what_would_be_refused(line: str) -> None:
    assert [name for node in ast.walk(ast.parse(line)) if (name := _touched(node))]


@pytest.mark.parametrize("line", ["a.replace('x', 'y')", "replace(a, b=1)", "a.open('rb')"])
def test_what_is_let_be(line: str) -> None:
    assert not [name for node in ast.walk(ast.parse(line)) if (name := _touched(node))]
