"""The verbosity, by `--quiet` and `--verbose`, of the tool and of other libraries.

Nothing heavy is imported: libraries read their variables when they are imported themselves.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from enum import Enum


class Verbosity(Enum):
    """The kinds: results and errors; also what is done (normal); also what libraries log."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


_VARIABLES = {
    Verbosity.QUIET: {
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
    },
    Verbosity.NORMAL: {},
    Verbosity.VERBOSE: {
        "TRANSFORMERS_VERBOSITY": "info",
        "DATASETS_VERBOSITY": "info",
        "HF_HUB_VERBOSITY": "info",
    },
}
_NOISY = "bitsandbytes"
"""It tells every importing program which kernel it lacks, and of casts at every step."""
_state = {"chosen": Verbosity.NORMAL}


def choose(verbosity: Verbosity) -> None:
    """Take a verbosity for the command to come, and hand it on to other libraries."""
    _state["chosen"] = verbosity
    os.environ.update(_VARIABLES[verbosity])
    if verbosity is Verbosity.QUIET:
        warnings.simplefilter("ignore")
    told = verbosity is Verbosity.VERBOSE
    logging.getLogger(_NOISY).setLevel(logging.NOTSET if told else logging.ERROR)
    if told:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")


def quiet() -> bool:
    """Return whether only results and errors are shown."""
    return _state["chosen"] is Verbosity.QUIET


def verbose() -> bool:
    """Return whether what libraries log is shown, too."""
    return _state["chosen"] is Verbosity.VERBOSE
