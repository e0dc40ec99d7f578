"""Images of handwritten digits with captions (`builtin://captions`).

The images are those of `builtin://digits`. A caption names the digit and says whether its strokes
are thin or bold, which makes twenty classes. Training rows use five phrases; validation rows use
only the first, so that each class has a single caption.
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
"""Templates of captions; validation uses the first only."""
STROKES = ("thin", "bold")
"""Ink below or above the median of the training images of the same digit."""


def load_captions(*, seed: int = 0) -> dict[str, list[dict[str, object]]]:
    """Make the training and validation rows.

    Args:
        seed: for the choice of phrases in training.

    Returns:
        "train" and "validation", with as many rows as `builtin://digits`: columns `image` (a PIL
        image of mode "L", 8 x 8) and `text`. Validation has 20 different texts; the most frequent
        one has about 5 % of the rows.
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
    """Return the caption of an image."""
    return phrase.format(digit=DIGIT_NAMES[digit], stroke=STROKES[int(bold)])


def _median_ink(images: NDArray[Any], digits: NDArray[Any]) -> list[float]:
    """Return the median sum of pixel values for each digit."""
    import numpy as np

    ink = images.sum(axis=(1, 2), dtype=int)
    return [float(np.median(ink[digits == digit])) for digit in range(len(DIGIT_NAMES))]
