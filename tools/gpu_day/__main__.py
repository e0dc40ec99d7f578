"""Run all that needs a GPU, and write one file of results.

    make gpu [PYTHON=...] [WHEELS=DIR] [TINY=1]
    python -m tools.gpu_day [--wheels DIR] [--tiny] [--minutes 9] [-o gpu-day.json]

Installs nothing. Packages that the interpreter lacks come from a folder of wheels, for this program
only. The parts are the methods' contract (which computes on the CPU by definition), the cases of
`tests/rehearsal` on the accelerator (each switch of training against the same run without it, each
method, family and command against the CPU), and `benchmarks.gpu`; their models are made from
configurations. Each part has a share of the minutes, and what does not fit is skipped and named in
the file, which is written anew after each part.

`--tiny` runs the cases and the tiny benchmarks in one process on the rehearsal device of
`tests/rehearsal`, without a GPU, and leaves nothing out for lack of time. pytest alone runs none of
them.

Exit code 1: a part failed or was ended; each case that failed has a line. 2: no GPU, or packages
are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu_day import packages
from tools.gpu_day.cases import END, FILE

ROOT = Path(__file__).parents[2]
_LINES = 300  # of a part's output in the file
_TOLD = 5  # of them on the screen, where no case tells more
_ENDS = 10.0  # seconds that a part has for its end


@dataclass(frozen=True)
class Part:
    """A part of the day.

    Attributes:
        share: of the minutes, after which it must have ended.
        needs: packages besides those of the tool.
        words: arguments of the interpreter, for the seconds that it has.
    """

    name: str
    share: float
    needs: tuple[str, ...]
    words: Callable[[float], list[str]]


def parts_of(*, tiny: bool) -> list[Part]:
    """Return the day's parts; a tiny day has one, with the benchmarks on the rehearsal device."""
    contract = ["tests/methods/test_contract.py", "tests/sora_cli/verify/test_contract.py"]
    names = ("switches", "commands", "afterwards", "memory", "fake")
    cases = [f"tests/rehearsal/test_{name}.py" for name in names]
    tests, figures = (packages.TESTS,), (packages.BENCHMARKS,)
    if tiny:
        cases.append("tests/rehearsal/test_benchmarks.py")
        return [Part("rehearsal", 1.0, tests + figures, _pytest(cases))]
    steps = Part("benchmarks", 1.0, figures, lambda seconds: [
        "-m", "benchmarks.gpu", "--minutes", f"{seconds / 60:.2f}"])  # fmt: skip
    return [
        Part("contract", 0.2, tests, _pytest(contract)),
        Part("rehearsal", 0.55, tests, _pytest(cases)),
        steps,
    ]


def _pytest(files: list[str]) -> Callable[[float], list[str]]:
    # without the options of pyproject.toml, which need pytest-xdist
    words = ["-m", "pytest", "-o", "addopts=", "--import-mode=importlib", "-q", "--no-header"]
    words += ["-m", "long or not long", "-p", "no:cacheprovider", "-p", "tools.gpu_day.cases"]
    return lambda _: [*words, *files]


def main(words: list[str] | None = None) -> int:
    """Run the day; return the exit code."""
    options, began = _options(words), time.time()
    with tempfile.TemporaryDirectory(prefix="sora-gpu-day-") as name:
        folder = Path(name)
        environment = _environment(options, folder)
        versions = packages.versions(packages.EVERY)
        lacking = [name for name in packages.needed() if not versions[name]]
        if lacking:
            _say(f"not installed: {', '.join(lacking)}; give a folder of wheels: WHEELS=DIR")
            return 2
        device = {"type": "cpu", "torch": versions["torch"]} if options.tiny else probe(environment)
        if device["type"] == "cpu" and not options.tiny:
            _say(f"no GPU: torch {device['torch']} names no accelerator; TINY=1 would run the same "
                 "parts on a rehearsal device in CPU memory, with tiny models")  # fmt: skip
            return 2
        parts = parts_of(tiny=options.tiny)
        result = introduce(device, versions, parts, options.minutes, tiny=options.tiny)
        for part in parts:
            left = began + 60 * options.minutes * part.share - time.time()
            done = run_part(part, left, versions, environment, folder)
            _say(summary(done))
            for line in failures(done):
                _say(line)
            result["parts"].append(done)
            result["seconds"] = round(time.time() - began, 1)
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _say(f"results: {options.output}")
    return int(any(part["outcome"] in ("failed", "ended") for part in result["parts"]))


def _environment(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Return the variables of the parts' processes, with the packages taken from wheels."""
    environment = dict(os.environ)
    if options.wheels is not None:
        installed = packages.versions(packages.EVERY)
        lacking = [name for name, version in installed.items() if not version]
        places = packages.take(lacking, options.wheels, folder / "packages")
        paths = [*map(str, places), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if options.tiny:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def _options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wheels", type=Path, help="folder of wheels for missing packages")
    parser.add_argument("--tiny", action="store_true", help="on the rehearsal device, no GPU")
    parser.add_argument("--minutes", type=float, help="in all; default: 9, tiny 60")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-day.json"))
    options = parser.parse_args(words)
    if options.minutes is None:
        options.minutes = 60.0 if options.tiny else 9.0  # only a GPU's minutes are dear
    return options


def probe(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the device that computes, as `tools.gpu_day.device` describes it."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.gpu_day.device"],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        _say(f"torch cannot be used: {done.stderr.strip().splitlines()[-1]}")
        sys.exit(2)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def introduce(
    device: Mapping[str, Any],
    versions: Mapping[str, str | None],
    parts: list[Part],
    minutes: float,
    *,
    tiny: bool,
) -> dict[str, Any]:
    """Print the device and all that is skipped; return the results so far."""
    named = "the rehearsal device, in CPU memory" if tiny else f"{device['type']}, {device['name']}"
    _say(f"torch {device['torch']} on {named}; at most {minutes:g} minutes")
    lacking = [name for name in packages.FOR_ROWS if not versions[name]]
    skipped = [f"{packages.FOR_ROWS[name]}: {name} is not installed" for name in lacking]
    skipped += [f"{part.name}: {why}" for part in parts if (why := _lacks(part, versions))]
    if tiny:
        skipped.append("CUDA's kernels and real sizes: this is no GPU")
    for line in skipped:
        _say(f"skipped: {line}")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "commit": commit.stdout.strip() or None,
        "device": {**device, "type": "rehearsal"} if tiny else dict(device),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": dict(versions),
        "skipped": skipped,
        "parts": [],
    }


def _lacks(part: Part, versions: Mapping[str, str | None]) -> str | None:
    lacking = [name for name in part.needs if not versions[name]]
    return f"{', '.join(lacking)} not installed" if lacking else None


def run_part(
    part: Part,
    seconds: float,
    versions: Mapping[str, str | None],
    environment: Mapping[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Run a part for at most `seconds`; return its record.

    Its outcome is "passed", "failed", "ended" (it took too long) or "skipped".
    """
    done: dict[str, Any] = {"name": part.name, "outcome": "skipped", "seconds": 0.0}
    lacks, usable = _lacks(part, versions), seconds - _ENDS
    if lacks or usable <= 0:
        return {**done, "why": lacks or "no time left"}
    began, cases, shown = time.time(), folder / f"{part.name}.jsonl", folder / f"{part.name}.txt"
    more = {FILE: str(cases), END: str(began + usable), "HF_HUB_OFFLINE": "1"}
    with shown.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *part.words(usable)], cwd=ROOT, env={**environment, **more},
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
            done["outcome"] = "failed" if code else "passed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it and the processes it started
            code = process.wait()
            done |= {"outcome": "ended", "why": f"it took more than {seconds:.0f} s"}
    lines = cases.read_text(encoding="utf-8").splitlines() if cases.exists() else []
    return {
        **done,
        "seconds": round(time.time() - began, 1),
        "limit": round(seconds, 1),
        "code": code,
        "cases": [json.loads(line) for line in lines],
        "output": shown.read_text(errors="replace").splitlines()[-_LINES:],
    }


def summary(done: Mapping[str, Any]) -> str:
    """Return a part's record as a line."""
    outcomes = [case["outcome"] for case in done.get("cases", ())]
    counts = ", ".join(f"{outcomes.count(name)} {name}" for name in dict.fromkeys(outcomes))
    details = done.get("why") or counts
    line = f"{done['name']}: {done['outcome']} in {done['seconds']:.0f} s"
    return f"{line} ({details})" if details else line


def failures(done: Mapping[str, Any]) -> list[str]:
    """Return a line for each case of a part's record that failed; its last error stands in it."""
    lines = []
    for case in done.get("cases", ()):
        if case["outcome"] == "failed":
            errors = [line[1:].strip() for line in case["why"].splitlines() if line[:2] == "E "]
            name = case["name"].rpartition("::")[2]
            lines.append(f"FAILED: {name}: {errors[0] if errors else 'see the file'}")
    broken = done["outcome"] == "failed" and not lines  # no case was reached
    return done["output"][-_TOLD:] if broken else lines


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
