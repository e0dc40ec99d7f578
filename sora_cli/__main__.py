"""Entry point of `python -m sora_cli` and of the `sora` script.

Signals are handled before the other imports: these take a tenth of a second, in which Python would
answer Ctrl-C with a traceback.
"""

try:
    from sora_cli.core.interruption import end_on_signals

    end_on_signals()
except KeyboardInterrupt:
    raise SystemExit(130) from None


def main() -> None:
    """Import the application and run its command line."""
    from sora_cli.core.openmp import wait_briefly

    wait_briefly()
    from sora_cli.app import main

    main()


if __name__ == "__main__":
    main()
