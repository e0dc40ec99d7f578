"""The exit codes of `sora` and their meanings."""

from __future__ import annotations

OK = 0
FAILED = 1
USER_ERROR = 2
NO_VERDICT = 3
INTERRUPTED = 130
TERMINATED = 143

MEANINGS = {
    OK: "The command did what it was asked to do. Output that nobody takes is dropped and changes "
    "no exit code: a pipe whose reader is gone (`| head -1`), a closed stream (`>&-`).",
    FAILED: "The command ran to its end, but the result is not right: `sora verify` found a "
    "difference; the files that `sora train`, `sora export` or `sora merge` wrote do not give the "
    "outputs they should; a run of `sora sweep` failed. Also: a fault of the program itself "
    "(`error: internal error`; the traceback is in the file that the message names).",
    USER_ERROR: "Something in the command line, the recipe, the data or the files can be put "
    "right: at most three lines on stderr say what, where, and what to type next. Also a disk "
    "that is full or may not be written, also where stdout goes there.",
    NO_VERDICT: "No verdict: what was written is complete, but the comparison cannot tell whether "
    "it is right, because the adapter changes the outputs by less than the rounding error of the "
    "comparison itself, or the rounding of the stored weights changes them about as much. Of "
    "`sora verify`, `sora export` and `sora merge`; `sora train` says `not verified` and ends with "
    "0. A run of `sora sweep` that ends so is finished. Also of `sora auto` and of `sora prune "
    "--max-drop`: the adapter is written, but the rows do not show that it keeps the promise.",
    INTERRUPTED: "Interrupted (SIGINT, Ctrl-C). `sora train` finishes its step, writes a "
    "checkpoint and says how to resume; a second signal stops it at once. `sora path`, "
    "`sora auto`, `sora sweep` and `sora predict` keep what is finished, and the same command "
    "continues. All other commands leave nothing half written.",
    TERMINATED: "Told to end (SIGTERM, as schedulers of clusters do). As with SIGINT.",
}
"""Meaning of each exit code, for docs/reference/exit-codes.md."""

FINISHED = (OK, NO_VERDICT)
"""Exit codes of a command that ended without an error."""

BY_SIGNAL = (INTERRUPTED, TERMINATED)
"""Exit codes of a run that stopped on a signal after it wrote its checkpoint."""
