"""Private names of Ray; adapt this file to its new versions."""

from __future__ import annotations


def keep_off_the_terminal() -> None:
    """Drop the messages of the cluster that Ray's driver prints to stdout.

    A thread prints the news of a lost machine there, with the last lines of its raylet's log.
    No option of `ray.init` prevents it (`listen_error_messages` of Ray 2.60). Ray's files hold it.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *_arguments, **_options: None
