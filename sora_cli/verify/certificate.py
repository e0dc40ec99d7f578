"""Check a certificate again: compute its evidence from the files anew, and compare each field.

Figures are compared with a tolerance (`tolerances`), since another machine rounds differently: if a
verdict changes within the tolerance, the check cannot tell. Everything else must be equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sora_cli.adapter.card import card_matches
from sora_cli.adapter.places import locate_adapter
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.search.evidence import (
    FILE_NAME,
    Evidence,
    directory_of,
    failed,
    required_certificate,
)
from sora_cli.verify.again import Again
from sora_cli.verify.again_finished import FinishedAgain
from sora_cli.verify.again_search import SearchAgain
from sora_cli.verify.tolerances import Compared, Comparison, close, compare, tolerated
from sora_cli.verify.verdict import Verdict


class Rechecked(BaseModel):
    """The outcome of a check.

    Attributes:
        compared: every figure that was computed again.
        differs: differences from the certificate, a sentence each.
        unclear: verdicts that changed within the tolerance, and bounds that are much better in the
            certificate, a sentence each.
        rows: number of differing rows that are tolerated.
    """

    compared: list[Compared]
    differs: list[str]
    unclear: list[str]
    rows: int

    @property
    def verdict(self) -> Verdict:
        """DIFFERENT if anything differs, UNKNOWN if only a figure is unclear, else SAME."""
        if self.differs:
            return Verdict.DIFFERENT
        return Verdict.UNKNOWN if self.unclear else Verdict.SAME

    @property
    def exit_code(self) -> int:
        """The exit code of the verdict."""
        return {Verdict.SAME: OK, Verdict.UNKNOWN: NO_VERDICT}.get(self.verdict, FAILED)


def recheck(
    run: Path, overrides: Sequence[str] = (), reference: Path | None = None
) -> tuple[Evidence, Rechecked]:
    """Compare a certificate with its files, and compute its evidence again on the same rows.

    Args:
        overrides: recipe keys with the present place of its data or model. Rows and adapters must
            still be those of the certificate.
        reference: of a finished adapter: the present place of what it was compared with.
    """
    certificate = required_certificate(run)
    document = json.loads((run / FILE_NAME).read_text(encoding="utf-8"))
    again = _compute_again(run, certificate, overrides, reference)
    figures, differs, scores = Comparison(certificate), again.differs, again.scores
    if again.evidence is not None and scores is not None:
        figures = compare(certificate, again.evidence, scores, again.reported)
        differs += _out_of_order(figures.agreed, again.named)
    correct = figures.agreed
    differs += _unlike(document, correct)
    if _same_words(document, correct) and not card_matches(locate_adapter(run), correct.lines()):
        differs.append(f"the card in {locate_adapter(run)} does not say: {correct.lines()[0]}")
    done = Rechecked(
        compared=figures.compared,
        differs=differs,
        unclear=[*figures.unclear, *figures.better],
        rows=tolerated(0 if scores is None else len(scores)),
    )
    return certificate, done


def _compute_again(
    run: Path, certificate: Evidence, overrides: Sequence[str], reference: Path | None
) -> Again:
    """Compute the evidence of a certificate again.

    Args:
        run: directory of the certificate.
        overrides: recipe keys with the present place of its data or model.
        reference: of a finished adapter: the present place of what it was compared with.
    """
    if certificate.command == "auto":
        if reference is not None:
            raise SoraError("B goes with the certificate of a finished adapter", hint="leave out B")
        return SearchAgain(run, overrides).again(certificate)
    return FinishedAgain(run, certificate, overrides, reference).again(certificate)


def _out_of_order(certificate: Evidence, named: Sequence[int] | None) -> Iterator[str]:
    """Yield a sentence for each breach of the fixed order of tests, largest size first."""
    if named is None:
        return
    tried = [size.max_params for size in certificate.candidates]
    ended = failed(certificate.candidates)
    if tried != list(named[: len(tried)]) or tried != sorted(tried, key=lambda n: -(n or 0)):
        yield f"sizes of {list(named)} parameters were named, {tried} were trained, in this order"
    elif ended is None and len(tried) < len(named):
        yield f"{len(named)} sizes were named, {len(tried)} were tested, and none failed"
    elif ended is not None and ended + 1 < len(tried):
        yield f"{directory_of(ended + 1)} was tested after a test had failed"


def _same_words(document: dict[str, Any], here: Evidence) -> bool:
    """Return true if a stored certificate has the sentences of this version."""
    return document.get("schema_version") == here.schema_version


_NEWER = {"bound": {"statistic", "best_case"}, "full": {"name", "within"}}
"""Keys that certificates of earlier versions do not have."""


def _unlike(document: dict[str, Any], here: Evidence) -> Iterator[str]:
    """Yield a sentence for each field of a certificate that differs from what was computed."""
    other = json.loads(here.model_dump_json())  # NaN is null
    # what a file does not say has its default
    document = _over(json.loads(Evidence.model_validate(document).model_dump_json()), document)
    if not _same_words(document, here):
        for key in ("schema_version", "statement", "scope", "saved", "command", "recipe"):
            document.pop(key, None)
            other.pop(key)
        for block, keys in _NEWER.items():
            for one in (document, other):
                one[block] = {k: v for k, v in one[block].items() if k not in keys}
    for name, was, now in _leaves(document, other, ""):
        yield f"{name}: {_as_json(was)} in the certificate, but it should be {_as_json(now)}"


def _over(defaults: Any, values: Any) -> Any:
    """Return values with what they do not say from the defaults; unknown keys are left out."""
    if isinstance(defaults, dict) and isinstance(values, dict):
        return {key: _over(known, values.get(key, known)) for key, known in defaults.items()}
    if isinstance(defaults, list) and isinstance(values, list):
        return [_over(a, b) for a, b in zip_longest(defaults, values)]
    return values


def _leaves(one: Any, other: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both values of each leaf that differs; a key that is missing is null."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**other, **one}:
            yield from _leaves(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list):
        for i, (a, b) in enumerate(zip_longest(one, other)):
            yield from _leaves(a, b, f"{name}[{i}]")
    elif not _same(one, other):
        yield name, one, other


def _same(one: Any, other: Any) -> bool:
    # counts must be equal: only numbers that were computed may differ by rounding
    if isinstance(one, float) and isinstance(other, float):
        return close(one, other)
    return type(one) is type(other) and bool(one == other)


def _as_json(value: Any) -> str:
    if value is None:
        return "nothing"
    return "more" if isinstance(value, dict | list) else json.dumps(value, ensure_ascii=False)
