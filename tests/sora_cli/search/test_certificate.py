"""`certificate.json`: it is read as it was written, and damage is said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.search.binomial import share_bound
from sora_cli.search.evidence import (
    FILE_NAME,
    Candidate,
    Evidence,
    Measured,
    Reference,
    Screened,
    read_certificate,
)
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import SCREENING, TEST, TRAIN, RowSet
from sora_cli.search.statistic import Bound, BoundMethod
from tests.sora_cli.experiments.auto.support import certificate_of


def certificate() -> Evidence:
    """Return one of a run with one candidate, which passed."""
    size = {"components": 4, "largest_rank": 2}
    promise = Promise(
        max_drop=0.005,
        given="0.5pt",
        confidence=0.95,
        metric="accuracy",
        greater_is_better=True,
        serve=None,
    )
    test = Bound(score=0.8, drop=0.0, upper=0.004, kept=True, differing=3)
    screening = Measured(score=math.nan, drop=0.01)
    unhealed = Screened(
        **size,
        parameters=40,
        served=40,
        share=0.5,
        max_params=45,
        screening=screening,
        named=True,
    )
    candidate = Candidate(
        **size,
        parameters=40,
        served=40,
        max_params=45,
        directory="stages/1",
        digest="sha256:b",
        heal_steps=5,
        test=test,
        reported={"validation": Measured(score=0.8, drop=0.01)},
    )
    full = Reference(
        parameters=90,
        components=16,
        largest_rank=8,
        served=90,
        r_max=8,
        directory="stages/full",
        digest="sha256:a",
        steps=50,
        cut_at=45,
        test=0.8,
        reported={"validation": 0.81},
    )
    rows = {name: RowSet(split="train", rows=900, digest="d") for name in (TRAIN, SCREENING, TEST)}
    return Evidence(
        promise=promise,
        bound=BoundMethod(method="exact", exact=True, smallest_drop=0.003),
        full=full,
        screened=[unhealed],
        candidates=[candidate],
        rows=rows,
        seeds={"training": 0, "rows": 1},
        base={"path": "M"},
    )


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = certificate()
    (tmp_path / FILE_NAME).write_text(written.model_dump_json())
    read = certificate_of(tmp_path)
    assert math.isnan(read.screened[0].screening.score)  # NaN is null in JSON
    assert read.model_dump_json() == written.model_dump_json()
    assert read.certified
    assert read.written.digest == read.adapter


def test_what_follows_from_the_figures_is_never_read() -> None:
    written = certificate().model_dump(mode="json")
    written |= {"statement": "nothing is lost", "saved": "all", "scope": "everything", "chosen": 3}
    written |= {"status": "not certified", "next_smaller": 0, "adapter": "sha256:c"}
    assert Evidence.model_validate(written) == certificate()
    written["candidates"][0]["test"] |= {"upper": 0.0051, "passed_over": True}
    changed = Evidence.model_validate(written)
    assert not changed.certified
    assert changed.candidates[0].test is not None
    assert (changed.candidates[0].test.kept, changed.candidates[0].test.passed_over) == (False,) * 2
    assert "may be 0.0051 worse" in changed.statement
    written["candidates"][0]["test"] = None
    assert (
        "the smallest loss they can certify, if no answer differs, is 0.0033"
        in Evidence.model_validate(written).statement
    )


def test_another_layout_is_refused(tmp_path: Path) -> None:
    for layout in (0, 99):
        text = json.dumps({**certificate().model_dump(mode="json"), "schema_version": layout})
        (tmp_path / FILE_NAME).write_text(text.replace("NaN", "null"))
        with pytest.raises(SoraError, match=f"has layout {layout} .*this version reads 4"):
            read_certificate(tmp_path)


def test_without_one_there_is_none(tmp_path: Path) -> None:
    assert read_certificate(tmp_path) is None


def test_a_damaged_one_is_said(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(SoraError, match="is damaged or of another version"):
        read_certificate(tmp_path)


def test_a_value_of_a_later_version_is_named_with_its_key(tmp_path: Path) -> None:
    text = certificate().model_dump_json().replace('"basis":"labels"', '"basis":"dice"')
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(SoraError, match=r"certificate\.json .*: promise\.basis: .*'answers'"):
        read_certificate(tmp_path)


def certificate_of_answers(differing: int = 3) -> Evidence:
    """Return a certificate of a promise about answers with one candidate, on 900 rows."""
    given = certificate().model_dump()
    given["promise"] |= {"kind": "differ", "max_drop": 0.01, "given": "1%"}
    test = given["candidates"][0]["test"]
    share = differing / 900
    test |= {"score": 1 - share, "drop": share, "differing": differing}
    test["upper"] = share_bound(differing, 900, 0.95)
    given["full"]["test"] = 1.0
    return Evidence.model_validate(given)


def test_of_answers_it_says_how_many_differ() -> None:
    found = certificate_of_answers()
    assert found.certified
    assert found.statement == (
        "with 95% confidence at most 1 % of the answers differ from those at full rank "
        "(bound 0.86 %: 3 of 900 rows differ)"
    )
    assert found.scope.startswith("answers, whether they are right or not, of the written adapter")
    assert "worse" not in " ".join(found.lines())
    failed = certificate_of_answers(differing=5)
    assert not failed.certified
    assert failed.statement == (
        "no size passed its test: of the largest, up to 1.16 % of the answers may differ from "
        "those at full rank, and 1 % is tolerated (bound 1.16 %: 5 of 900 rows differ)"
    )
    untested = found.model_dump()
    untested["candidates"][0]["test"] = None
    assert Evidence.model_validate(untested).statement == (
        "900 rows cannot show that at most 1 % of the answers differ: the smallest share they can "
        "certify, if no answer differs, is 0.33 %"
    )


def test_of_answers_no_conclusion_is_read() -> None:
    written = certificate_of_answers().model_dump(mode="json")
    written |= {"statement": "all are the same", "scope": "everything", "status": "not certified"}
    assert Evidence.model_validate(written) == certificate_of_answers()
    written["candidates"][0]["test"] |= {"upper": 0.0101, "kept": True}
    assert not Evidence.model_validate(written).certified


def certificate_by_answers(differing: int = 3) -> Evidence:
    """Return a certificate of a drop that answers test, on 900 rows."""
    given = certificate().model_dump()
    given["promise"] |= {"basis": "answers", "max_drop": 0.01, "given": "1pt"}
    share = differing / 900
    answers = {"score": 1 - share, "drop": share, "upper": share_bound(differing, 900, 0.95)}
    given["candidates"][0]["test"] |= {**answers, "differing": differing, "kept": False}
    return Evidence.model_validate(given)


def test_a_drop_by_answers_says_why() -> None:
    found = certificate_by_answers()
    assert found.certified
    assert found.statement == (
        "with 95% confidence accuracy is at most 0.01 worse than at full rank, because at most "
        "0.86 % of the answers differ (3 of 900 rows without labels differ)"
    )
    assert "rows drawn like the unlabelled ones" in found.scope
    failed = certificate_by_answers(differing=5)
    assert failed.statement == (
        "no size passed its test: of the largest, accuracy may be 0.0116 worse than at full rank, "
        "because at most 1.16 % of the answers differ, and 0.01 is tolerated (5 of 900 rows "
        "without labels differ)"
    )
    untested = found.model_dump()
    untested["candidates"][0]["test"] = None
    said = Evidence.model_validate(untested).statement
    assert said.startswith("900 rows without labels cannot show that accuracy is at most 0.01")


def repeated(every: float | None, held: int | None = 1200, **promise: object) -> Evidence:
    """Return a certificate of 900 rows that test, of 1,200 that were held."""
    given = certificate().model_dump()
    given["promise"] |= promise
    given["candidates"][0]["test"]["every"] = every
    given["rows"][TEST]["held"] = held
    return Evidence.model_validate(given)


def test_a_promise_is_about_distinct_inputs() -> None:
    whole = repeated(None, held=900)
    assert "on 900 distinct inputs that training has not seen: " in whole.statement
    assert "distinct inputs drawn like the test rows" in whole.scope
    assert "repeat" not in whole.statement + whole.scope


def test_the_drop_on_all_rows_stands_in_the_same_sentence() -> None:
    some = repeated(0.002)
    assert some.certified
    assert some.statement.endswith(
        "; 25.0% of the 1,200 test rows repeat an input, and over all of them as they come it is "
        "+0.0020"
    )
    more = repeated(0.0101)
    assert more.certified
    assert more.statement.endswith("as they come it is +0.0101, which is MORE THAN PROMISED")
    assert repeated(0.02, kind="differ").statement.endswith(
        "over all of them as they come 2.00 % of the answers differ, which is MORE THAN PROMISED"
    )


def test_an_older_certificate_says_that_repeats_were_not_kept_apart() -> None:
    old = certificate().model_dump(mode="json")
    for part in old["rows"].values():
        del part["held"], part["inputs"]
    del old["candidates"][0]["test"]["every"]
    read = Evidence.model_validate(old)
    assert "on 900 rows: " in read.statement
    assert read.scope.endswith("rows that repeat an input were not kept apart from those that test")


def test_a_promise_of_an_older_file_is_about_the_drop() -> None:
    written = certificate().model_dump(mode="json")
    del written["promise"]["kind"]
    assert Evidence.model_validate(written) == certificate()


def test_classes_without_a_test_row_are_named() -> None:
    told = certificate().model_dump(mode="json")
    told["rows"][TEST]["classes"] = {"a": 800, "b": 100, "c": 0}
    made = Evidence.model_validate(told)
    assert made.scope.endswith("; nothing about 1 of 3 classes, of which no row tests: 'c'")
    assert "classes" not in certificate().scope


@pytest.mark.parametrize(("share", "nothing"), [(0.79, False), (0.796, True), (0.9, True)])
def test_a_promise_that_a_constant_answer_keeps(share: float, nothing: bool) -> None:
    told = certificate().model_dump(mode="json")
    told["rows"][TEST]["classes"] = {"a": round(900 * share), "b": 900 - round(900 * share)}
    made = Evidence.model_validate(told)
    assert made.certified
    assert ("promises nothing: always answering 'a' would keep it" in made.statement) is nothing
