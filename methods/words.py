"""The hint that ends a message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: object, known: Iterable[str]) -> str | None:
    """Return the known name that is most like a word; None where none is near.

    Where no spelling is near, a name that begins with the word and an underscore is.
    """
    names = list(known)
    # difflib's own cut-off, 0.6: "acuracy" is to find "token_accuracy" (0.67), and "fp8" is not
    # to find "fp32" (0.57), which is another thing and no typing error.
    near = difflib.get_close_matches(str(word), names, n=1)
    near += [name for name in names if name.startswith(f"{word}_")]
    return near[0] if near else None


def did_you_mean(word: object, known: Iterable[str], *, also: Iterable[str] = ()) -> str:
    """Return "did you mean 'x'?", or, where no known name is near, the list of all.

    Args:
        also: names that may be meant, too, but are too many to be listed.
    """
    names = list(known)
    near = closest(word, [*names, *also])
    return f"there are: {', '.join(names)}" if near is None else f"did you mean '{near}'?"
