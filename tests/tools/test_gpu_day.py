"""`make gpu`: its parts are replaced by small programs, its device by an answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.shared_files import ROOT
from tools.gpu_day import __main__ as day
from tools.gpu_day import packages
from tools.gpu_day.cases import END, FILE

GPU = {"type": "cuda", "torch": "2.13", "name": "H100", "bytes": 8e10, "cuda": "13.0"}
NONE = {"type": "cpu", "torch": "2.13.0+cpu"}


def python(name: str, code: str, *, share: float = 1.0, needs: tuple[str, ...] = ()) -> day.Part:
    return day.Part(name, share, needs, lambda _: ["-c", code])


def run_day(
    monkeypatch: pytest.MonkeyPatch, parts: list[day.Part], device: dict[str, Any], *words: str
) -> int:
    monkeypatch.setattr(day, "probe", lambda _: device)
    monkeypatch.setattr(day, "parts_of", lambda **_: parts)
    return day.main(list(words))


def test_without_a_gpu_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_day(monkeypatch, [], NONE) == 2
    assert re.fullmatch(r"no GPU: .*\+cpu names no .* TINY=1 would .*\n", capsys.readouterr().out)


def test_the_tool_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packages, "_version", lambda name: None if name == "torch" else "1")
    assert run_day(monkeypatch, [], GPU) == 2
    assert capsys.readouterr().out == "not installed: torch; give a folder of wheels: WHEELS=DIR\n"


def test_torch_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        day.probe({"PYTHONHOME": "/nowhere"})
    assert end.value.code == 2
    assert capsys.readouterr().out.startswith("torch cannot be used: ")


def test_parts_and_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = {"peft", "bitsandbytes", "triton"}
    monkeypatch.setattr(
        packages, "_version",
        lambda name: "1" if name in installed | {*packages.needed()} else None,
    )  # fmt: skip
    parts = [
        python("first", "print('its line')", needs=("peft",)),
        python("second", "raise SystemExit(3)"),
        python("third", "", needs=("pytest",)),
        python("fourth", "", share=0.0),
    ]
    file = tmp_path / "day.json"
    assert run_day(monkeypatch, parts, GPU, "-o", str(file), "--minutes", "5") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "torch 2.13 on cuda, H100; at most 5 minutes"
    assert lines[1:4] == [
        "skipped: Liger's kernels: liger-kernel is not installed",
        "skipped: flash attention: flash-attn is not installed",
        "skipped: third: pytest not installed",
    ]
    result = json.loads(file.read_text())
    assert result["device"] == GPU
    assert result["versions"]["torch"] == "1"
    assert result["skipped"] == [line.removeprefix("skipped: ") for line in lines[1:4]]
    outcomes = [(part["name"], part["outcome"]) for part in result["parts"]]
    assert outcomes == [("first", "passed"), ("second", "failed"), ("third", "skipped"),
                        ("fourth", "skipped")]  # fmt: skip
    assert result["parts"][0]["output"] == ["its line"]
    assert result["parts"][1]["code"] == 3
    assert result["parts"][3]["why"] == "no time left"


def test_a_part_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(day, "_ENDS", 0.0)
    part = python("waits", "import time; time.sleep(600)")
    done = day.run_part(part, 0.1, {}, {}, tmp_path)
    assert (done["outcome"], done["code"]) == ("ended", -9)
    assert day.summary(done).endswith(" (it took more than 0 s)")


def cases_of(folder: Path, end: float) -> list[dict[str, Any]]:
    test = folder / "test_it.py"
    test.write_text("def test_one(record_property):\n    record_property('waits', [3])\n"
                    "def test_two():\n    assert 1 == 2\n")  # fmt: skip
    words = day._pytest([str(test)])(0.0)
    environment = {FILE: str(folder / "cases"), END: str(end), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True)
    return [json.loads(line) for line in (folder / "cases").read_text().splitlines()]


def test_the_outcomes_of_tests(tmp_path: Path) -> None:
    one, two = cases_of(tmp_path, time.time() + 600)
    assert (one["outcome"], one["waits"]) == ("passed", [3])
    assert two["outcome"] == "failed"
    assert "assert 1 == 2" in two["why"]
    assert day.summary(
        {"name": "it", "outcome": "failed", "seconds": 2.0, "cases": [one, two]}
    ) == ("it: failed in 2 s (1 passed, 1 failed)")


def test_what_failed_has_a_line(tmp_path: Path) -> None:
    """With its last error; where no case was reached, the end of the output tells."""
    cases = cases_of(tmp_path, time.time() + 600)
    done: dict[str, Any] = {"outcome": "failed", "output": ["a", "no module", "of this name"]}
    assert day.failures({**done, "cases": cases}) == ["FAILED: test_two: assert 1 == 2"]
    assert day.failures({**done, "cases": []}) == done["output"]
    assert day.failures({**done, "outcome": "passed"}) == []
    assert day.failures({"outcome": "skipped"}) == []


def test_a_tiny_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks for no device, takes its time, and its code is that of its part."""
    monkeypatch.setattr(day, "probe", lambda _: pytest.fail("asked for the device"))
    for code, outcome in ((0, "passed"), (1, "failed")):
        part = python("rehearsal", f"print('its line'); raise SystemExit({code})")
        monkeypatch.setattr(day, "parts_of", lambda part=part, **_: [part])
        assert day.main(["--tiny", "-o", str(tmp_path / "day.json")]) == code
        said = capsys.readouterr().out
        assert "in CPU memory; at most 60 minutes\n" in said
        assert f"\nrehearsal: {outcome} in " in said
        assert ("\nits line\n" in said) == bool(code)


def test_tests_for_which_no_time_is_left(tmp_path: Path) -> None:
    for case in cases_of(tmp_path, time.time() - 1):
        assert case["outcome"] == "skipped"
        assert "no time left" in case["why"]


def test_packages_from_a_folder_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken with what it needs; not one that would replace an installed package."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "gpu_day_sample", needs="gpu-day-other")
    write_wheel(wheels, "gpu_day_other")
    write_wheel(wheels, "gpu_day_greedy", needs="pytest>=1000")
    write_wheel(wheels, "pytest", version="1000")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = ["gpu-day-sample", "gpu-day-greedy", "gpu-day-nowhere"]
    places = packages.take(names, wheels, tmp_path / "packages")
    assert [place.name for place in places] == ["site-packages"]
    assert packages.versions([*names, "gpu-day-other"]) == {
        "gpu-day-sample": "1.0", "gpu-day-greedy": None, "gpu-day-nowhere": None,
        "gpu-day-other": "1.0",
    }  # fmt: skip
    assert packages.versions(["pytest"])["pytest"] == pytest.__version__


def write_wheel(folder: Path, name: str, *, version: str = "1.0", needs: str | None = None) -> None:
    info = f"{name}-{version}.dist-info"
    required = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", head + required)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize("tiny", [True, False])
def test_the_real_parts(*, tiny: bool) -> None:
    parts = day.parts_of(tiny=tiny)
    assert [part.share for part in parts] == sorted(part.share for part in parts)
    assert parts[-1].share == 1
    words = [word for part in parts for word in part.words(90.0)]
    files = {ROOT / word for word in words if word.startswith("tests/")}
    assert all(file.is_file() for file in files)
    assert ("benchmarks.gpu" in words) == (not tiny)
    assert ("1.50" in words) == (not tiny)
    if tiny:  # nothing else runs them
        assert files == set((ROOT / "tests" / "rehearsal").glob("test_*.py"))
