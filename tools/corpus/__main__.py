"""The command line of the corpus."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from tools.corpus.compare import report


def main() -> int:
    """Make a corpus, record what the verbs make of it, or compare two records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the adapters into a folder")
    running = commands.add_parser("run", help="record what every verb makes of them")
    for each in (making, running):
        each.add_argument("folder", type=Path)
        each.add_argument("--kinds", default="*", help="a pattern such as 'peft-*/case-*'")
        each.add_argument("--jobs", type=int, default=1)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--verbs", default="*", help="a pattern such as 'merge/*'")
    comparing = commands.add_parser("compare", help="print what differs between two records")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        return compare(options.a, options.b)
    # before torch: results must not depend on the machine's cores or its network
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    from tools.corpus import process

    if options.command == "make":
        return process.make(options.folder, options.kinds, options.jobs)
    return process.run(options.folder, options.out, options.kinds, options.verbs, options.jobs)


def compare(a: Path, b: Path) -> int:
    """Print what differs; return 1 if anything does."""
    records: list[dict[str, Any]] = [json.loads(p.read_text(encoding="utf-8")) for p in (a, b)]
    first, second = records
    for name, value in first["about"].items():
        if value != second["about"].get(name):
            print(f"note: {name} {value} and {second['about'].get(name)}", file=sys.stderr)
    lines = report(first["rows"], second["rows"])
    print("\n".join(lines) or "no difference")
    return bool(lines)


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
