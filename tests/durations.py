"""What each test costs: seconds of a worker, stored in `durations.json`.

    make durations                              run all tests and store what each took
    make durations TESTS="tests/e2e -k resume"  store some tests, and leave the others' figures
    python -m tests.durations                   print the dearest files, and the folders' budgets

A plugin of pytest, which `conftest.py` loads. A test that took 0.6 seconds is long, like those that
are marked so. A test stops at 20 times its stored seconds, and never before ten minutes: that ends
a hang, and no busy machine. After a run of all tests the
summary names each folder that takes more than its budget. It compares shares of this machine's
time, as machines differ, and it fails nothing.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

FILE = Path(__file__).with_suffix(".json")
COLLECTED = pytest.StashKey[list[pytest.Item]]()
LIMIT, FLOOR = 20, 600  # times the stored seconds; seconds
LONG = 0.6  # seconds
AIR = 1.1  # a folder's budget is what it took when it was last set, and a tenth
_STORED = 0.2  # seconds; tests that take less are stored as their file's rest, if they are not long
_COMPARED = 1.0  # seconds: shorter tests say little about a machine
_SHOWN = 20


class Durations:
    """The stored file.

    Attributes:
        tests: by file, then by test: seconds of a worker, with setup and teardown.
        rest: by file, the seconds of its other tests together.
        budget: by folder, the seconds that its tests may take.
    """

    def __init__(self) -> None:
        stored = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        self.tests: dict[str, dict[str, float]] = stored.get("tests", {})
        self.rest: dict[str, float] = stored.get("rest", {})
        self.budget: dict[str, float] = stored.get("budget", {})

    def of(self, nodeid: str) -> float:
        """Return the stored seconds of a test, or 0."""
        file, _, name = nodeid.partition("::")
        return self.tests.get(file, {}).get(name, 0.0)

    def store(self, taken: dict[str, float], long: set[str], *, whole: bool) -> None:
        """Write what these tests took; after a whole run nothing else is kept."""
        if whole:
            self.tests, self.rest = {}, {}
        rest: Counter[str] = Counter()
        for nodeid, seconds in taken.items():
            file, _, name = nodeid.partition("::")
            if seconds >= _STORED or nodeid in long:
                self.tests.setdefault(file, {})[name] = round(seconds, 2)
            else:
                self.tests.get(file, {}).pop(name, None)
                rest[file] += seconds
        if whole:
            self.rest = {file: round(seconds, 2) for file, seconds in rest.items()}
            self.budget = {k: round(AIR * s, 1) for k, s in self.folders().items()}
        FILE.write_text(
            json.dumps(vars(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )

    def files(self) -> Counter[str]:
        """Return the seconds of each file."""
        found = Counter(self.rest)
        for file, tests in self.tests.items():
            found[file] += sum(tests.values())
        return found

    def folders(self) -> dict[str, float]:
        """Return the seconds of each folder, without its subfolders."""
        return by_folder(self.files().items())


def by_folder(seconds: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Add up what tests or files took, by the folder of their file."""
    found: dict[str, float] = defaultdict(float)
    for nodeid, taken in seconds:
        found[Path(nodeid.partition("::")[0]).parent.as_posix()] += taken
    return dict(sorted(found.items()))


def exceeded(taken: dict[str, float], stored: Durations) -> list[str]:
    """Return a line for each folder over its budget, and one for the machine."""
    pairs = [(s, stored.of(nodeid)) for nodeid, s in taken.items()]
    ratios = [now / before for now, before in pairs if before >= _COMPARED]
    pace = median(ratios) if ratios else 1.0
    lines = [f"this machine takes {pace:.2f} times the stored seconds"]
    for folder, seconds in by_folder(taken.items()).items():
        budget = stored.budget.get(folder, 0.0)
        if seconds > pace * max(budget, 1.0):
            lines.append(
                f"{folder} takes {seconds:.0f} s, {seconds / pace:.0f} s at the stored pace: its "
                f"budget is {budget:.0f} s"
            )
    return lines


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that stores."""
    parser.addoption("--durations-store", action="store_true", help=f"write {FILE.name} anew")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remember what was collected, long or not; mark long tests, and give each test its limit."""
    config.stash[COLLECTED] = list(items)
    stored = Durations()
    for item in items:
        seconds = stored.of(item.nodeid)
        item.add_marker(pytest.mark.timeout(max(FLOOR, LIMIT * seconds)))
        if seconds >= LONG:
            item.add_marker("long")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say in a report that its test is long: reports alone come from the workers."""
    outcome: Any = yield
    outcome.get_result().long = item.get_closest_marker("long") is not None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Compare the folders with their budgets, and store where that is asked for."""
    taken: dict[str, float] = defaultdict(float)
    long: set[str] = set()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                taken[report.nodeid] += report.duration
                if getattr(report, "long", False):
                    long.add(report.nodeid)
    paths = {Path(config.rootpath, word).resolve() for word in config.args}
    chosen = config.option.keyword or config.option.markexpr not in ("", "long or not long")
    whole = paths == {FILE.parent.resolve()} and not chosen
    if whole and taken:  # a collection alone takes nothing
        terminalreporter.section("seconds by folder")
        for line in exceeded(taken, Durations()):
            terminalreporter.line(line)
    if config.option.durations_store:
        Durations().store(taken, long, whole=whole)


def main() -> None:
    """Print the dearest files and the budgets."""
    stored = Durations()
    lines = [f"{seconds:8.1f} s  {file}" for file, seconds in stored.files().most_common(_SHOWN)]
    lines += ["", "folder: seconds, budget"]
    lines += [
        f"{s:8.1f} s  {stored.budget.get(k, 0):8.1f} s  {k}" for k, s in stored.folders().items()
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
