"""`sora auto` and `sora verify --certificate`, end to end on a tiny model."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sora_cli.adapter.digest import result_digest
from sora_cli.app import run
from sora_cli.commands import auto
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.data.content import data_fingerprint
from sora_cli.data.rows import load_rows
from sora_cli.experiments.auto import maker
from sora_cli.experiments.auto.record import read_auto
from sora_cli.recipe.load import load_stored
from sora_cli.report import read_report
from sora_cli.run import stored
from sora_cli.search.certificate import Certificate, read_certificate
from sora_cli.verify import certificate as recheck
from tests.helpers_errors import error_of
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, pair_rows, save_base, signal_at, train, write_rows
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return auto_recipe(tmp_path_factory.mktemp("auto"))


@pytest.fixture(scope="module")
def done(recipe: Path) -> Path:
    """A finished search."""
    out = recipe.parent / "out"
    assert run(["auto", str(recipe), "--no-verify"]) == 0
    return out


@pytest.fixture
def found(done: Path) -> Certificate:
    return certificate_of(done)


SIZES = ("sizes/full", "sizes/1", "sizes/2")


def same_result(one: Path, other: Path, parts: Sequence[str] = SIZES) -> None:
    """All adapters of two searches are the same to the byte, and what is promised of them."""
    for name in (".", *parts):
        assert files_of(one / name / "adapter") == files_of(other / name / "adapter"), name
    assert (one / "certificate.json").read_bytes() == (other / "certificate.json").read_bytes()
    first, second = read_report(one), read_report(other)
    assert first is not None
    assert second is not None
    assert first.metrics == second.metrics
    assert first.ranks == second.ranks


def goes_on_after_a_signal(
    monkeypatch: pytest.MonkeyPatch, step: int, words: list[str], done: Path, out: Path,
    parts: Sequence[str] = SIZES,
) -> None:  # fmt: skip
    """A search that a signal stops at a step: the same command ends as a search never stopped."""
    with monkeypatch.context() as patched:
        signal_at(patched, step)
        assert run(words) == 128 + signal.SIGTERM
    assert run(words) == OK
    same_result(done, out, parts)


@pytest.mark.versions
def test_the_certificate_is_of_what_was_written(done: Path, found: Certificate) -> None:
    report = read_report(done)
    assert report is not None
    assert found.certified
    assert found.adapter == result_digest(done / "adapter") == report.digests["adapter"]
    assert found.written.digest == found.adapter
    assert found.full.digest == result_digest(done / "sizes/full/adapter")
    assert report.parameters.adapter_end == found.written.parameters
    assert sum(rank.end for rank in report.ranks.values()) == found.written.components
    assert found.written.parameters <= found.written.max_params < found.full.parameters
    drop = found.full.reported["validation"] - report.metrics["validation"]["accuracy"]
    assert found.written.reported["validation"].drop == pytest.approx(drop)
    card = (done / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"## Certificate\n\n{found.status.capitalize()}: {found.statement}." in card


def test_tests_come_largest_first_and_end_with_the_first_failure(found: Certificate) -> None:
    sizes = [size.parameters for size in found.candidates]
    assert sizes == sorted(sizes, reverse=True)
    named = [size.max_params for size in found.screened if size.named]
    assert [size.max_params for size in found.candidates] == named[: len(found.candidates)]
    kept = [size.test is not None and size.test.kept for size in found.candidates]
    assert all(kept[:-1])
    assert found.chosen == (len(kept) - 1 if kept[-1] else len(kept) - 2)
    for size in found.candidates:
        assert size.test is not None
        assert size.test.kept == (size.test.upper <= 0.5)
        assert size.test.drop == pytest.approx(found.full.test - size.test.score)
        assert size.heal_steps == found.full.steps - found.full.cut_at


def test_no_row_plays_two_parts(done: Path, found: Certificate) -> None:
    report = read_report(done)
    assert report is not None
    data = load_stored(report.recipe, done / "report.json", "x").recipe.data
    rows = load_rows(data)
    assert [found.rows[name].rows for name in ("train", "screening", "test")] == [64, 15, 45]
    assert len(rows.select) == 60
    assert data_fingerprint(rows.train) == found.rows["train"].digest
    texts = [set(part["sentence1"]) for part in (rows.train, rows.select)]
    held = [row for row in rows.select["sentence1"] if row in texts[0]]
    assert len(held) < 5  # a few short sentences occur twice in the data


def test_the_full_run_is_plain_training(recipe: Path, done: Path) -> None:
    words = ["training.evaluate=no", "training.keep_best=false"]
    words += ["data.selection=train-rows", "data.selection_rows=60", "data.selection_seed=42"]
    plain = recipe.parent / "plain"
    train(recipe, *words, f"output.dir={plain}")
    full, alone = (files_of(run / "adapter") for run in (done / "sizes/full", plain))
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # others tell of the run
        assert full[name] == alone[name]


@pytest.mark.long
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    recipe: Path, done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recipe.parent / "stopped"
    words = ["auto", str(recipe), "--no-verify", f"output.dir={out}"]
    with monkeypatch.context() as patched:
        patched.setattr(maker, "drop_bound", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        assert run([*words, "--force"]) != 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    told = capsys.readouterr().err
    assert "1 of the smaller sizes" not in told
    assert "the same command, without --force, continues from there" in told
    record = read_auto(out)
    assert record is not None
    assert record.full is not None
    assert record.candidates == []
    assert run(words) == 0
    assert "continuing in" in capsys.readouterr().err
    same_result(done, out)


def test_the_certificate_holds_when_it_is_scored_again(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(done, tmp_path / "elsewhere")
    assert run(["verify", str(moved), "--certificate", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "same"
    assert all(one["stored"] == one["here"] for one in facts["compared"])
    shutil.copytree(done / "sizes/1/adapter", moved / "adapter", dirs_exist_ok=True)
    found = read_certificate(moved)
    assert found is not None
    if found.chosen != 0:
        assert run(["verify", str(moved), "--certificate"]) == FAILED
        assert "is not the adapter of the certificate" in capsys.readouterr().out


def test_the_certificate_is_scored_again_where_the_data_have_moved(
    recipe: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, data = shutil.copytree(done, tmp_path / "elsewhere"), recipe.parent
    report = moved / "report.json"
    text = report.read_text(encoding="utf-8")
    report.write_text(text.replace(f"{data}/train.jsonl", "/gone/train.jsonl"), encoding="utf-8")
    words = ["verify", str(moved), "--certificate"]
    said = error_of(capsys, *words)
    assert "/gone/train.jsonl" in said[0]
    assert "where it is now: data.files.train=FILE" in said[-1]
    assert run([*words, f"data.files.train={data}/train.jsonl"]) == 0
    rows = write_rows(tmp_path / "other.jsonl", pair_rows(124, seed=7))
    assert run([*words, f"data.files.train={rows}"]) == FAILED
    assert "rows are not those of the certificate" in capsys.readouterr().out


NOT_VERIFIED = {
    "screened[].parameters": "size of a cut that was not kept",
    "screened[].components": "size of a cut that was not kept",
    "screened[].largest_rank": "size of a cut that was not kept",
    "screened[].served": "size of a cut that was not kept",
    "screened[].share": "the share of the parameters that it was cut to",
    "screened[].max_params": "of sizes that were not trained",
    "screened[].screening.score": "before healing: no such adapter is kept",
    "screened[].screening.drop": "before healing: no such adapter is kept",
    "screened[].expected": "follows from the screening rows",
    "screened[].certifiable": "follows from the screening rows",
    "screened[].differing": "follows from the screening rows",
}
"""What a certificate says and no check computes again; docs/explanation/certificate.md says so."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each value of a JSON document that is no object and no list, with its place."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def other(path: tuple[Any, ...], value: Any) -> Any:
    """Return another value that the field takes."""
    if path == ("status",):
        return {"certified": "not certified"}.get(value, "certified")
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (1 if isinstance(value, int) else 0.0123)
    numbers = {"next_smaller", "differing", "held", "inputs", "every"}
    return f"{value}x" if value is not None else 1 if path[-1] in numbers else "vllm"


def placed(document: Any, path: tuple[Any, ...], value: Any) -> str:
    """Return a JSON document with another value at a place."""
    changed = json.loads(json.dumps(document))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(changed)


@pytest.fixture
def scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the rows and score each adapter once, however often their run is verified."""

    def numbers(_recipe: Any, found: Certificate) -> tuple[int | None, ...]:
        screening, test = (found.rows[name] for name in ("screening", "test"))
        return screening.rows, screening.inputs, test.held or test.rows

    keys: dict[str, Callable[..., Any]] = {
        "RowsAgain": numbers,
        "_measured": lambda folder, _recipe, rows, parts, _: (folder, rows, tuple(parts)),
    }

    def once(compute: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[Any, Any] = {}

        def cached(*words: Any) -> Any:
            if key(*words) not in known:
                known[key(*words)] = compute(*words)
            return known[key(*words)]

        return cached

    for name, key in keys.items():
        monkeypatch.setattr(recheck, name, once(getattr(recheck, name), key))


@pytest.mark.usefixtures("scored_once")
def test_no_field_of_the_certificate_can_be_changed(done: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    tried = {size["max_params"] for size in document["candidates"]}
    passing = set()
    for path, value in leaves(document):
        name = ".".join(str(part) for part in path if not isinstance(part, int))
        name = name.replace("screened.", "screened[].")
        file.write_text(placed(document, path, other(path, value)), encoding="utf-8")
        with suppress(SoraError):  # exit code 2
            if recheck.recheck(copy)[1].exit_code == 0:
                assert name in NOT_VERIFIED, path
                assert path[-1] != "max_params" or value not in tried, path
                passing.add(name)
    assert passing == NOT_VERIFIED.keys()
    file.write_text(json.dumps(document), encoding="utf-8")
    assert recheck.recheck(copy)[1].exit_code == 0


@pytest.mark.usefixtures("scored_once")
def test_what_follows_from_the_figures_is_not_believed(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    for size in document["candidates"]:  # as if nothing had been tested
        size["test"] = None
    document |= {"chosen": 0, "statement": "nothing is lost", "saved": "all of it"}
    file.write_text(json.dumps(document), encoding="utf-8")
    found = read_certificate(copy)
    assert found is not None
    assert not found.certified
    assert "cannot show that accuracy is at most 0.5 worse" in found.statement
    assert run(["verify", str(copy), "--certificate"]) == FAILED
    said = capsys.readouterr().out
    assert "not certified" in said.splitlines()[0]
    assert 'statement: "nothing is lost" in the certificate, ' in said
    assert 'saved: "all of it" in the certificate, ' in said
    assert run(["report", str(copy), "--force"]) == 0
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert "Not certified:" in page
    assert "nothing is lost" not in page


@pytest.mark.usefixtures("scored_once")
def test_the_card_says_what_the_certificate_says(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    card = copy / "adapter" / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace("at most 0.5 worse", "at most 0.001 worse"), encoding="utf-8")
    assert run(["verify", str(copy), "--certificate"]) == FAILED
    assert f"the card in {copy / 'adapter'} does not say: Certified: " in capsys.readouterr().out


def test_the_certificate_is_scored_again_where_the_base_has_moved(
    recipe: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base that is named is the one that is loaded, and must hold the same weights."""
    moved = shutil.copytree(recipe.parent / "base", tmp_path / "moved")
    words = ["verify", str(done), "--certificate"]
    with pytest.MonkeyPatch.context() as patch:
        loaded = list[str]()
        inner = stored.load_base
        patch.setattr(
            stored,
            "load_base",
            lambda block, *a, **o: loaded.append(block.path) or inner(block, *a, **o),
        )
        assert run([*words, f"model.path={moved}"]) == 0
    assert set(loaded) == {str(moved)}
    other = save_base(tiny_bert(num_labels=2, seed=1), tmp_path / "other")
    assert f"{other} holds other weights" in error_of(capsys, *words, f"model.path={other}")[0]


@pytest.mark.parametrize(
    "word", ["auto.max_drop=0.4", "task.metrics=[f1]", "data.max_length=4", "model.dtype=bfloat16"]
)
def test_a_certificate_takes_no_other_recipe(
    done: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    said = error_of(capsys, "verify", str(done), "--certificate", word)
    assert f"{word.partition('=')[0]} would change nothing" in said[0]
    assert "data.path" in said[2]
    assert "model.path" in said[2]


@pytest.mark.parametrize("size", [".", "sizes/full"])
def test_other_names_of_the_classes_are_not_the_certificates(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    changed = shutil.copytree(done, tmp_path / "changed")
    file = changed / size / "adapter" / "sora.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(said | {"labels": ["1", "0"]}), encoding="utf-8")
    assert run(["verify", str(changed), "--certificate"]) == FAILED
    assert "has the labels 1, 0, and the run 0, 1" in capsys.readouterr().out


def test_a_finished_search_is_not_repeated(
    recipe: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds a finished run" in error_of(capsys, "auto", str(recipe))[0]
    words = ["auto", str(recipe), f"output.dir={done}", "training.seed=1"]
    assert "training.seed was 0, is now 1" in error_of(capsys, *words)[0]


@pytest.mark.parametrize(
    ("certified", "differ", "code"),
    [(True, OK, OK), (False, OK, NO_VERDICT), (True, FAILED, FAILED), (False, FAILED, FAILED)],
)
def test_exit_codes(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    certified: bool,
    differ: int,
    code: int,
) -> None:
    found = SimpleNamespace(certified=certified)
    log = SimpleNamespace(epilogue=lambda _: nullcontext(), report=None)
    monkeypatch.setattr(auto, "run", lambda *_, **__: (found, None, log))
    monkeypatch.setattr(auto, "conclude", lambda *_, **__: None)
    monkeypatch.setattr("sora_cli.verify.run_check.check_run", lambda *_: differ)
    assert run(["auto", str(recipe), f"output.dir={tmp_path}/out"]) == code


@pytest.mark.long
def test_rows_that_cannot_certify_the_promise(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["auto", str(recipe), "--max-drop", "0.5pt", "--no-verify", f"output.dir={out}"]
    words += [f"data.files.test={recipe.parent}/validation.jsonl", "data.validation=[test]"]
    assert run([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "too few test rows to certify this drop" in shown
    assert (
        "--max-drop smallest (0.105); 0.005 needs a training split of about 41,800 rows; this one "
        "has 124" in shown
    )
    assert not out.exists()
    assert run([*words, "--json"]) == NO_VERDICT
    told = capsys.readouterr()
    found = Certificate.model_validate_json(told.out)
    assert not found.certified
    assert len(found.candidates) == 1  # what screening likes, and no test
    assert found.candidates[0].test is None
    assert {name: part.rows for name, part in found.rows.items() if "test" in name} == {
        "test": 45,
        "reported test": 24,
    }
    assert (out / "adapter").is_dir()
    assert "too few test rows to certify this drop" in told.err
    assert run(["verify", str(out), "--certificate"]) == 0
    file = out / "certificate.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"not certified"', '"certified"'), encoding="utf-8")
    capsys.readouterr()
    assert run(["verify", str(out), "--certificate"]) == FAILED
    said = 'status: "certified" in the certificate, but it should be "not certified"'
    assert said in capsys.readouterr().out
    assert "not certified" in (read_certificate(out) or found).status


def test_the_smallest_loss_that_the_rows_can_certify(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["auto", str(recipe), "--max-drop", "smallest", "--no-verify", f"output.dir={out}"]
    assert run(words) in (OK, NO_VERDICT)
    told = capsys.readouterr().err
    assert "(smallest), with 95% confidence; 45 test rows" in told
    assert "WARNING" not in told
    found = read_certificate(out)
    assert found is not None
    assert found.promise.given == "smallest"
    assert found.bound.smallest_drop is not None
    assert 0 <= found.promise.max_drop - found.bound.smallest_drop < 0.005
    assert run(["verify", str(out), "--certificate"]) == 0


def test_there_is_no_smallest_loss_before_sizes_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = auto_recipe(tmp_path, task={"name": "sequence-regression"}, auto={"rows": 72})
    error = error_of(capsys, "auto", path, "--max-drop", "smallest")
    assert "is known only after sizes have been scored" in error[0]
    assert "--max-drop 2pt" in error[1]


def test_the_sentences_of_an_earlier_version_are_not_compared(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    file = out / "certificate.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored |= {"schema_version": 1, "statement": "it was said in other words"}
    file.write_text(json.dumps(stored), encoding="utf-8")
    assert run(["verify", str(out), "--certificate"]) == 0
    file.write_text(json.dumps(stored | {"schema_version": 3}), encoding="utf-8")
    assert run(["verify", str(out), "--certificate"]) == FAILED


@pytest.mark.long
@pytest.mark.parametrize("step", [3, 15, 16])
def test_a_signal_in_training_and_in_healing(
    recipe: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    words = ["auto", str(recipe), "--no-verify", f"output.dir={tmp_path}/out"]
    goes_on_after_a_signal(monkeypatch, step, words, done, tmp_path / "out")


@pytest.mark.long
def test_a_metric_that_is_not_right_or_wrong_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"name": "sequence-regression"}
    auto = {"max_drop": "30pt", "serve": "llama.cpp", "rows": 72}
    path = auto_recipe(tmp_path, task=task, auto=auto)
    assert run(["auto", str(path), "--no-verify"]) in (0, NO_VERDICT)
    assert "test rows can be expected to certify" in capsys.readouterr().err
    found = read_certificate(tmp_path / "out")
    assert found is not None
    assert not found.bound.exact
    assert found.bound.method.startswith("approximate")
    first = next(size for size in found.screened if size.named)
    assert found.bound.smallest_drop == first.certifiable
    assert first.certifiable is not None
    written = found.candidates[0]
    assert written.parameters <= written.served <= found.full.served
    assert written.served % written.largest_rank == 0
    words = ["verify", str(tmp_path / "out"), "--certificate"]
    assert run(words) == 0
    file = tmp_path / "out" / "certificate.json"
    text = file.read_text(encoding="utf-8")
    assert written.test is not None
    file.write_text(text.replace(f"{written.test.upper}", f"{written.test.upper - 0.001}"))
    capsys.readouterr()
    assert run(words) == FAILED
    assert "candidates[0].test.upper: " in capsys.readouterr().out


@pytest.mark.long
def test_data_without_a_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, base = recipe.parent / "train.jsonl", recipe.parent / "base"
    words = ["auto", "--data", str(data), "--model", str(base), "--max-drop", "50pt"]
    assert run([*words, "auto.rows=40", "training.max_steps=16", "--no-verify"]) == 0
    assert (tmp_path / "train.yaml").is_file()
    assert read_certificate(tmp_path / "runs" / "train-auto-s0") is not None
