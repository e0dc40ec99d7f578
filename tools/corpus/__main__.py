"""The command line of the corpus."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from sora_cli.core.console import emit, say
from tools.corpus.compare import report
from tools.corpus.verbs import matches


def main() -> int:
    """Make a corpus, record what the verbs make of it, or compare two records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the adapters into a folder")
    running = commands.add_parser("run", help="record what every verb makes of them")
    comparing = commands.add_parser("compare", help="print what differs between two records")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    for each in (making, running, comparing):
        each.add_argument("--kinds", default="*", help="patterns such as 'own/*,peft-*/case-*'")
    for each in (running, comparing):
        each.add_argument("--verbs", default="*", help="patterns such as 'inspect,merge/*'")
    for each in (making, running):
        each.add_argument("folder", type=Path)
        each.add_argument("--jobs", type=int, default=1, help="processes at a time")
    running.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "compare":
        return compare(options.a, options.b, options.kinds, options.verbs)
    # before torch: results must not depend on the machine's cores or its network
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    from tools.corpus import process

    if options.command == "make":
        return process.make(options.folder, options.kinds, options.jobs)
    return process.run(options.folder, options.out, options.kinds, options.verbs, options.jobs)


def compare(a: Path, b: Path, kinds: str = "*", verbs: str = "*") -> int:
    """Print what differs; return 1 if anything does."""
    records: list[dict[str, Any]] = [json.loads(p.read_text(encoding="utf-8")) for p in (a, b)]
    first, second = records
    for name, value in first["about"].items():
        if value != second["about"].get(name):
            say(f"note: {name} {value} and {second['about'].get(name)}")
    rows = [
        {
            kind: {verb: row for verb, row in found.items() if matches(verb, verbs)}
            for kind, found in record["rows"].items()
            if matches(kind, kinds)
        }
        for record in records
    ]
    lines = report(*rows)
    emit("\n".join(lines) or "no difference")
    return bool(lines)


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    say(f"{time.monotonic() - started:.0f} s")
    sys.exit(code)
