"""The exit codes of `sora` and their meanings."""

from __future__ import annotations

OK = 0
FAILED = 1
USER_ERROR = 2
NO_VERDICT = 3
LABELS_WANTED = 4
INTERRUPTED = 130
TERMINATED = 143

MEANINGS = {
    OK: "The command did its work. Output that cannot be delivered is dropped and does not change "
    "the exit code: a pipe whose reader has ended (`| head -1`), a closed stream (`>&-`).",
    FAILED: "The command ran to its end, but the result is wrong: `sora verify` found a "
    "difference, a second model that is worse than promised, or a server without the adapter; "
    "the files written by `sora train`, `sora export` or `sora merge` give other outputs than they "
    "should; a run of `sora sweep` failed. Also: a fault of the program itself (`error: internal "
    "error`; the message names the file with the traceback).",
    USER_ERROR: "The command line, the recipe, the data or a file has a mistake that the user can "
    "put right: at most three lines on stderr name the problem, the place and the next command. "
    "Also: a disk that is full or not writable, even if only stdout goes there.",
    NO_VERDICT: "No verdict: the written files are complete, but the comparison cannot tell "
    "whether they are right, because the adapter changes the outputs by less than the rounding "
    "error of the comparison, or the rounding of the stored weights changes them about as much. "
    "`sora verify`, `sora export` and `sora merge` end with it; `sora train` prints `not verified` "
    "and ends with 0, and a run of `sora sweep` that ends with 3 counts as finished. Also: `sora "
    "auto`, and `sora prune` and `sora extract` with `--max-drop` or `--max-differ`, wrote an "
    "adapter, but could not certify the promise; `sora verify A B` with a promise shows neither "
    "that it is kept nor that it is broken; `--ask` would have to ask for more labels than "
    "`--labels` allows; `sora verify --certificate` misses what the "
    "certificate compares with; and work of an earlier version that used a "
    "setting which is gone cannot be continued or tested again.",
    LABELS_WANTED: "Labels wanted: `--ask` of `sora auto`, `prune`, `extract` or `verify` has "
    "written a table, and waits for the labels that a person fills in. The same command reads "
    "them and goes on. A run of `sora sweep` that ends with 4 counts as unfinished, and the sweep "
    "ends with 4, too, if nothing failed.",
    INTERRUPTED: "Interrupted (SIGINT, Ctrl-C). `sora train` finishes its step, writes a "
    "checkpoint and prints the command that resumes the run; a second signal stops it at once. "
    "`sora path`, `sora auto`, `sora sweep` and `sora predict` keep finished work, and the same "
    "command, without `--force`, continues. All other commands leave no half-written files.",
    TERMINATED: "Terminated (SIGTERM, which schedulers of clusters send). As with SIGINT.",
}
"""Meaning of each exit code, for docs/reference/exit-codes.md."""

FINISHED = (OK, NO_VERDICT)
"""Exit codes of a command that ended without an error."""

BY_SIGNAL = (INTERRUPTED, TERMINATED)
"""Exit codes of a run that stopped on a signal after it wrote its checkpoint."""
