"""No input brings code in: recipes, data, models and adapters are read, `--code` alone is run."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.data.rows import load_rows
from sora_cli.model.base import load_base
from sora_cli.recipe import yaml_lines
from sora_cli.recipe.metric_names import check_metric
from sora_cli.recipe.recipe import DataBlock, ModelBlock
from sora_cli.recipe.task_options import ONE_NUMBER
from sora_cli.tasks import create_task
from sora_cli.tasks.metrics import _OFFLINE, load_metric
from tests.helpers_models import tiny_bert
from tests.helpers_runs import glue_rows, save_base, write_recipe
from tests.shared_files import ROOT
from tests.sora_cli.bad_input.runner import snapshot

SOURCES = sorted([*(ROOT / "sora_cli").rglob("*.py"), *(ROOT / "methods").rglob("*.py")])
EVIL = "from pathlib import Path\nPath('ran').touch()\n"
CODE = f"""{EVIL}
from transformers import BertConfig, BertForSequenceClassification

class Mine(BertConfig):
    model_type = "mine"

class Model(BertForSequenceClassification):
    config_class = Mine
"""


# --- what the sources call


@cache
def _nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


@cache
def _calls(file: Path) -> list[tuple[str, ast.Call]]:
    """Dotted name and node of every call in a file."""
    return [(ast.unparse(n.func), n) for n in _nodes(file) if isinstance(n, ast.Call)]


def _callers(*names: str) -> set[str]:
    """Files that call one of some functions, relative to the checkout."""
    return {
        file.relative_to(ROOT).as_posix()
        for file in SOURCES
        for name, _ in _calls(file)
        if name in names
    }


def test_nothing_is_unpickled_or_evaluated() -> None:
    for file in SOURCES:
        imports = {a.name for n in _nodes(file) if isinstance(n, ast.Import) for a in n.names}
        imports |= {n.module or "" for n in _nodes(file) if isinstance(n, ast.ImportFrom)}
        roots = {name.partition(".")[0] for name in imports}
        assert not roots & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, file
    readers = ("torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle")
    assert not _callers(*readers, "eval", "exec", "compile", "__import__", "os.system", "os.popen")
    for file in SOURCES:
        for name, call in _calls(file):
            assert not any(k.arg == "shell" for k in call.keywords), f"{file}: {name}"


def test_yaml_is_read_by_the_safe_loader_alone() -> None:
    assert issubclass(yaml_lines._Loader, yaml.SafeLoader)
    found = {
        (file.name, name, ast.unparse(call))
        for file in SOURCES
        for name, call in _calls(file)
        if re.fullmatch(r"yaml\.\w*(load|compose|parse)\w*", name)
    }
    assert found == {("yaml_lines.py", "yaml.compose", "yaml.compose(text, Loader=_Loader)")}


def test_who_imports_by_a_name() -> None:
    """Commands, methods, tasks and models by constants, `--code`, and the Hub's own metrics."""
    importers = ("importlib.import_module", "import_module", "runpy.run_path", "runpy.run_module",
                 "pkgutil.resolve_name", "resolve_name")  # fmt: skip
    assert _callers(*importers) == {
        "methods/registry.py",
        "sora_cli/app.py",
        "sora_cli/data/builtin/models.py",
        "sora_cli/tasks/__init__.py",
    }
    loaders = ("importlib.util.spec_from_file_location", "spec_from_file_location")
    assert _callers(*loaders) == {"sora_cli/recipe/plugins.py"}
    assert _callers("evaluate.load") == {"sora_cli/tasks/metrics.py"}


def test_trust_is_off_or_the_recipes() -> None:
    given = {
        ast.unparse(keyword.value)
        for file in SOURCES
        for _, call in _calls(file)
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code"
    }
    assert given <= {"False", "recipe.model.trust_remote_code"}
    assert '"trust_remote_code": block.trust_remote_code' in (
        ROOT / "sora_cli" / "model" / "base.py"
    ).read_text(encoding="utf-8")
    assert ModelBlock(path="x").trust_remote_code is False


# --- metrics


@pytest.mark.parametrize(
    "name", ["./evil", "./evil/evil.py", "evil/evil.py", "evil.py", "/tmp/evil", "somebody/theirs",
             "~/evil", "..", "", "a b", "evil\\evil"]
)  # fmt: skip
def test_a_metric_is_no_path_and_nobodys_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    for file in ("evil/evil.py", "evil.py"):
        (tmp_path / file).write_text(EVIL)
    with pytest.raises(SoraError, match="is not run"):
        load_metric(name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["bleu/bleu.py", "bleu"])
def test_a_metric_is_not_taken_from_the_working_directory(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(EVIL)
    with pytest.raises(SoraError, match="'bleu' in this directory would be run instead"):
        load_metric("bleu")
    assert not (tmp_path / "ran").exists()


def test_one_list_of_metrics() -> None:
    assert tuple(_OFFLINE) == ONE_NUMBER
    check_metric("bleu", ONE_NUMBER, from_hub=True)


# --- models and data that come with code


def _mine(folder: Path) -> Path:
    """A model whose class is in a file beside it."""
    save_base(tiny_bert(num_labels=2), folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "mine.Mine", "AutoModelForSequenceClassification": "mine.Model"}
    config |= {"model_type": "mine", "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(CODE)
    return folder


def test_a_models_code_runs_only_if_the_recipe_says_so_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "c"))
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), rows=8)
    words = ["train", str(recipe), "--dry-run", f"model.path={_mine(tmp_path / 'mine')}"]
    assert run(words) == 2
    shown = capsys.readouterr().err
    assert "needs its own Python code, which is not run by default" in shown
    assert "model.trust_remote_code=true" in shown
    assert "note:" not in shown
    assert not Path("ran").exists()
    trust = "model.trust_remote_code=true"
    assert run([*words, trust]) == 0
    shown = capsys.readouterr().err
    assert f"note: model.trust_remote_code is on (command line: {trust})" in shown
    assert Path("ran").exists()


def test_a_tokenizers_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), rows=8)
    file = tmp_path / "base" / "tokenizer_config.json"
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    (tmp_path / "base" / "mine.py").write_text(EVIL)
    run(["train", str(recipe), "--dry-run"])
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_directory_of_rows_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "rows", tmp_path / "both"):
        folder.mkdir()
        (folder / f"{folder.name}.py").write_text(EVIL)
    (tmp_path / "both" / "train.jsonl").write_text('{"text": "a", "label": 0}\n')
    for name in ("rows", "both"):
        with pytest.raises(SoraError):
            load_rows(DataBlock(path=str(tmp_path / name)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "word", ["method.name=evil:Evil", "method.name=evil", "task.name=evil:Evil", "task.name=evil",
             "training.loggers=[evil]", "task.metrics=[evil]", "data.path=builtin://evil",
             "model.path=package://evil/model"]
)  # fmt: skip
def test_no_name_in_a_recipe_imports_a_module(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), rows=8)
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text(EVIL)
    (tmp_path / "evil" / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = snapshot(tmp_path)
    words = ["data.files=null"] if word.startswith("data.path") else []
    assert run(["train", str(recipe), *words, word]) == 2
    assert "error: " in capsys.readouterr().err
    assert snapshot(tmp_path) == before


# --- which revision was used

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _addresses(rows: Dataset) -> None:
    address = f"hf://datasets/owner/rows@{COMMIT}/a.parquet"
    rows.info.download_checksums = {address: {"num_bytes": 1, "checksum": None}}


@pytest.mark.parametrize(("mark", "found"), [(_addresses, COMMIT), (lambda _: None, None)])
def test_the_rows_commit_is_known(
    monkeypatch: pytest.MonkeyPatch, mark: Callable[[Dataset], None], found: str | None
) -> None:
    from datasets import DatasetDict

    parts = DatasetDict({name: glue_rows("rte", 4) for name in ("train", "validation")})
    for part in parts.values():
        mark(part)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: parts)
    assert load_rows(DataBlock(path="owner/rows", revision="main")).revision == found


def test_the_rows_commit_is_in_the_name_of_their_cache(tmp_path: Path) -> None:
    from sora_cli.data.rows import _revision

    folder = tmp_path / "owner___rows" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    glue_rows("rte", 4).map(lambda row: row, cache_file_name=str(folder / "rows.arrow"))
    rows = Dataset.from_file(str(folder / "rows.arrow"))
    assert _revision([rows]) == COMMIT
    assert load_rows(DataBlock(path="builtin://entailment")).revision is None


def test_the_models_commit_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch is named; what is recorded is the commit it stood for in the cache."""
    cache = tmp_path / "models--owner--tiny"
    save_base(tiny_bert(num_labels=2), cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    from sora_cli.recipe.recipe import TaskBlock

    task: Any = create_task(TaskBlock(name="sequence-classification"), DataBlock(path="unused"))
    task.bind(glue_rows("rte", 6))
    base = load_base(ModelBlock(path="owner/tiny", revision="main"), task)
    assert base.revision == COMMIT
