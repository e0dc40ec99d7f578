"""PEFT's rule for `rank_pattern` and `alpha_pattern`, with a bound on the time it may take.

A key of either is a regular expression from a file that anybody may have written, and some take
forever to match. Plain names and anchored full paths, which is what nearly all are, can not; all
others are matched in a process of their own, which is stopped if it takes too long.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence

from sora_cli.errors import SoraError

TIME_LIMIT = 5.0
"""Seconds for all patterns of an adapter together."""
_LONGEST = 4096  # characters of a pattern
_MOST_IN_PROCESS = 1_000_000  # pairs of a plain name and a path
_PLAIN = re.compile(r"\^?(?:[\w.\-]|\\[.\-])+")

_CHILD = r"""
import json, re, sys
patterns, paths = json.load(sys.stdin)
hits = {}
for key in patterns:
    match = re.compile(rf"(.*\.)?({key})$").match
    hits[key] = [i for i, path in enumerate(paths) if match(path)]
print(json.dumps(hits))
"""


def anchored(path: str) -> str:
    """The pattern that matches this module path and no other."""
    return f"^{re.escape(path)}"


def match_patterns(
    patterns: Iterable[str], paths: Sequence[str], *, where: str
) -> dict[str, list[str]]:
    """Which module paths each pattern matches, by PEFT's rule (peft.utils.other.get_pattern_key).

    Raises:
        SoraError: no regular expression, or one that takes too long.
    """
    exact = {anchored(path): path for path in paths}
    hits: dict[str, list[str]] = {}
    plain: list[str] = []
    other: list[str] = []
    for key in dict.fromkeys(patterns):
        hits[key] = [exact[key]] if key in exact else []
        if key not in exact and not _is_anchored(key):
            (plain if _PLAIN.fullmatch(key) else other).append(key)
    if len(plain) * len(paths) > _MOST_IN_PROCESS:
        plain, other = [], [*plain, *other]
    for key in plain:
        match = _compiled(key, where).match
        hits[key] = [path for path in paths if match(path)]
    if other:
        hits |= _match_apart(other, paths, where)
    return hits


def _is_anchored(key: str) -> bool:
    """A full path as `anchored` writes it, then of a module that is not there."""
    return key.startswith("^") and key == anchored(re.sub(r"\\(.)", r"\1", key[1:]))


def _compiled(key: str, where: str) -> re.Pattern[str]:
    if len(key) > _LONGEST:
        raise SoraError(f"the pattern {key[:40]!r}... has {len(key)} characters", where=where)
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise SoraError(
            f"the pattern {key[:200]!r} is no regular expression: {error}", where=where
        ) from error


def _match_apart(keys: list[str], paths: Sequence[str], where: str) -> dict[str, list[str]]:
    for key in keys:
        _compiled(key, where)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([keys, list(paths)]),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        slow = isinstance(error, subprocess.TimeoutExpired)
        reason = f"takes more than {TIME_LIMIT:g} s" if slow else f"failed: {error}"
        raise SoraError(
            f"matching the patterns {', '.join(repr(key[:60]) for key in keys[:3])} {reason}",
            where=where,
            hint="write plain module names as keys of rank_pattern and alpha_pattern",
        ) from error
    found = json.loads(done.stdout)
    return {key: [paths[i] for i in found[key]] for key in keys}
