"""Real images of handwritten digits (`builtin://digits`): 8 x 8, grey, stored in scikit-learn.

They are the test set of Alpaydin and Kaynak (1998), UCI Machine Learning Repository, "Optical
Recognition of Handwritten Digits", doi 10.24432/C50P49: 1,797 images, all different.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Label names in the order of the label numbers."""
VALIDATION_ROWS = 360
_SEED = 0
_LARGEST = 16  # largest value in scikit-learn's table


def digit_arrays() -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Load the images as arrays.

    Returns:
        "train" (1,437 rows) and "validation" (360 rows), in a fixed order, with nearly equal shares
        of each digit: images (rows, 8, 8) uint8, 0 is paper and 255 is ink; digits (rows,).
    """
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / _LARGEST)).astype(np.uint8)
    parts = train_test_split(
        images,
        bunch.target,
        test_size=VALIDATION_ROWS,
        random_state=_SEED,
        stratify=bunch.target,
    )
    return {"train": (parts[0], parts[2]), "validation": (parts[1], parts[3])}


def load_digit_images() -> dict[str, list[dict[str, object]]]:
    """Load the images as rows.

    Returns:
        "train" and "validation": rows with the columns `image` (a PIL image of mode "L", 8 x 8) and
        `label` (an index into `DIGIT_NAMES`). Chance is 10 %.
    """
    from PIL import Image

    return {
        split: [
            {"image": Image.fromarray(image), "label": int(digit)}
            for image, digit in zip(images, digits, strict=True)
        ]
        for split, (images, digits) in digit_arrays().items()
    }
