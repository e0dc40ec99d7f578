"""The hint that ends a message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: object, known: Iterable[str]) -> str | None:
    """Return the known name with the most similar spelling; None if no spelling is similar.

    If no spelling is similar, a name that begins with the word and an underscore is returned.
    """
    names = list(known)
    # difflib's default cut-off, 0.6: "acuracy" should find "token_accuracy" (0.67), but "fp8" must
    # not find "fp32" (0.57), which is a different format and no misspelling.
    near = difflib.get_close_matches(str(word), names, n=1)
    near += [name for name in names if name.startswith(f"{word}_")]
    return near[0] if near else None


def did_you_mean(word: object, known: Iterable[str], *, also: Iterable[str] = ()) -> str:
    """Return "did you mean 'x'?", or the list of known names if none is similar.

    Args:
        also: further names to suggest, too many to list.
    """
    names = list(known)
    near = closest(word, [*names, *also])
    return f"there are: {', '.join(names)}" if near is None else f"did you mean '{near}'?"
