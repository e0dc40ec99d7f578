"""Match the regular expressions of an adapter's configuration, within a time limit.

They come from a file that anybody may have written, and some take forever to match. Plain names and
anchored full paths, which nearly all are, cannot; all others are matched in a process of their own,
which is stopped if it takes too long.

The package `regex` has a timeout, but is another engine than the `re` that PEFT uses. It answers at
once for `(a+)+$`, on which `re`, and so PEFT, never returns: an adapter that hangs PEFT would pass.
And it reads `(?:foo){e<=1}` and `[[:alpha:]]`, legal in both, in another way. Only `re` itself,
stopped from outside, tells what PEFT does.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few

TIME_LIMIT = 5.0
"""Seconds for all expressions that are matched together."""
_LONGEST = 4096  # characters of an expression
_MOST_IN_PROCESS = 1_000_000  # pairs of a plain name and a path
_QUICK = re.compile(r"\^?(?:[\w.\-]|\\[.\-])+")

_CHILD = r"""
import json, re, sys
expressions, paths = json.load(sys.stdin)
hits = []
for text, full in expressions:
    compiled = re.compile(text)
    match = compiled.fullmatch if full else compiled.match
    hits.append([i for i, path in enumerate(paths) if match(path)])
print(json.dumps(hits))
"""


@dataclass(frozen=True)
class Expression:
    """A regular expression for module paths.

    Attributes:
        given: the text in the file.
        before, after: the text that PEFT puts around it.
        full: it must match all of a path (`re.fullmatch`), not only its start (`re.match`).
    """

    given: str
    before: str = ""
    after: str = ""
    full: bool = False

    @property
    def text(self) -> str:
        """The whole expression."""
        return f"{self.before}{self.given}{self.after}"

    def compiled(self, where: str) -> re.Pattern[str]:
        """Compile the expression."""
        quoted = repr(self.given[:200])
        if len(self.given) > _LONGEST:
            raise SoraError(
                f"the pattern {quoted[:40]}... has {len(self.given)} characters", where=where
            )
        try:
            return re.compile(self.text)
        except (re.error, RecursionError, OverflowError) as error:
            raise SoraError(
                f"the pattern {quoted} is not a regular expression: {error}", where=where
            ) from error


def anchored(path: str) -> str:
    """Return the pattern that matches this module path and no other."""
    return f"^{re.escape(path)}"


def match_patterns(
    patterns: Iterable[str], paths: Sequence[str], *, where: str
) -> dict[str, list[str]]:
    """Return the module paths that each key of a pattern table matches, by PEFT's rule.

    That is `get_pattern_key` in peft.utils.other.
    """
    exact = {anchored(path): path for path in paths}
    hits: dict[str, list[str]] = {}
    other: list[str] = []
    for key in dict.fromkeys(patterns):
        hits[key] = [exact[key]] if key in exact else []
        if key not in exact and not _is_anchored(key):
            other.append(key)
    expressions = [Expression(key, r"(.*\.)?(", ")$") for key in other]
    return hits | dict(zip(other, match_expressions(expressions, paths, where=where), strict=True))


def match_expressions(
    expressions: Sequence[Expression], paths: Sequence[str], *, where: str
) -> list[list[str]]:
    """Return the module paths that each expression matches.

    All slow expressions together may take `TIME_LIMIT` seconds.
    """
    is_quick = [bool(_QUICK.fullmatch(expression.given)) for expression in expressions]
    if sum(is_quick) * len(paths) > _MOST_IN_PROCESS:
        is_quick = [False] * len(expressions)
    slow = [
        expression for expression, quick in zip(expressions, is_quick, strict=True) if not quick
    ]
    slow_hits = iter(_match_in_process(slow, paths, where) if slow else ())
    hits = []
    for expression, quick in zip(expressions, is_quick, strict=True):
        hits.append(_match(expression, paths, where) if quick else next(slow_hits))
    return hits


def _match(expression: Expression, paths: Sequence[str], where: str) -> list[str]:
    compiled = expression.compiled(where)
    match = compiled.fullmatch if expression.full else compiled.match
    return [path for path in paths if match(path)]


def _is_anchored(key: str) -> bool:
    """Return true if this is a full path in the spelling of `anchored`."""
    return key.startswith("^") and key == anchored(re.sub(r"\\(.)", r"\1", key[1:]))


def _match_in_process(
    expressions: Sequence[Expression], paths: Sequence[str], where: str
) -> list[list[str]]:
    for expression in expressions:
        expression.compiled(where)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],  # isolated, and without site: starts faster
            input=json.dumps([[(e.text, e.full) for e in expressions], list(paths)]),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        slow = isinstance(error, subprocess.TimeoutExpired)
        reason = f"takes more than {TIME_LIMIT:g} s" if slow else f"failed: {error}"
        raise SoraError(
            f"matching the patterns {first_few(repr(e.given[:60]) for e in expressions)} {reason}",
            where=where,
            hint="write plain module names instead",
        ) from error
    return [[paths[i] for i in hits] for hits in json.loads(done.stdout)]
