"""Verbosity of the tool and of other libraries: `--quiet`, normal or `--verbose`.

Nothing slow is imported. Libraries read their environment variables when they are imported later.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from enum import Enum


class Verbosity(Enum):
    """Results and errors (quiet); also progress and notes (normal); also library logs (verbose)."""

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
"""bitsandbytes logs a missing kernel at every import, and a cast at every step."""
_state = {"chosen": Verbosity.NORMAL}


def choose(verbosity: Verbosity) -> None:
    """Set the verbosity of this process, and pass it on to other libraries."""
    _state["chosen"] = verbosity
    os.environ.update(_VARIABLES[verbosity])
    if verbosity is Verbosity.QUIET:
        warnings.simplefilter("ignore")
    shows_logs = verbosity is Verbosity.VERBOSE
    logging.getLogger(_NOISY).setLevel(logging.NOTSET if shows_logs else logging.ERROR)
    if shows_logs:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")


def quiet() -> bool:
    """Return True if only results and errors are shown."""
    return _state["chosen"] is Verbosity.QUIET


def verbose() -> bool:
    """Return True if the logs of libraries are shown."""
    return _state["chosen"] is Verbosity.VERBOSE
