"""Handwritten digits and what they show in words (`builtin://captions`).

The images are those of `builtin://digits`. A caption says which digit it is and whether the
strokes are thin or bold, so that twenty things are to be told apart. Training has several
phrases for each; validation has one, so that the same thing has the same caption.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from sora_cli.data.builtin.digits import DIGIT_NAMES, digit_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

PHRASES = (
    "a {stroke} handwritten {digit}",
    "the digit {digit} in {stroke} strokes",
    "somebody wrote a {stroke} {digit}",
    "this shows the number {digit} in {stroke} ink",
    "a picture of a {stroke} {digit}",
)
"""The ways of saying it; validation has the first."""
STROKES = ("thin", "bold")
"""Less, or more ink than the median of the training images of the same digit."""


def load_captions(*, seed: int = 0) -> dict[str, list[dict[str, object]]]:
    """Make the training and the validation rows.

    Args:
        seed: Seed of the phrases that are drawn for training.

    Returns:
        "train" and "validation", as many as of `builtin://digits`: rows with the columns `image`
        (a PIL image of mode "L", 8 x 8) and `text`. Validation has 20 different texts; the
        commonest is that of about 5 % of the rows.
    """
    from PIL import Image

    arrays, rng = digit_arrays(), random.Random(f"{seed}/captions")
    usual = _median_ink(*arrays["train"])
    return {
        split: [
            {
                "image": Image.fromarray(image),
                "text": caption(
                    int(digit),
                    bold=bool(image.sum(dtype=int) > usual[int(digit)]),
                    phrase=PHRASES[0] if split == "validation" else rng.choice(PHRASES),
                ),
            }
            for image, digit in zip(images, digits, strict=True)
        ]
        for split, (images, digits) in arrays.items()
    }


def caption(digit: int, *, bold: bool, phrase: str = PHRASES[0]) -> str:
    """Say what an image shows."""
    return phrase.format(digit=DIGIT_NAMES[digit], stroke=STROKES[int(bold)])


def _median_ink(images: NDArray[Any], digits: NDArray[Any]) -> list[float]:
    """Return the median sum of an image's values, for each digit."""
    import numpy as np

    ink = images.sum(axis=(1, 2), dtype=int)
    return [float(np.median(ink[digits == digit])) for digit in range(len(DIGIT_NAMES))]
