"""One run at a time in an output directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sora_cli.core import lock
from sora_cli.core.errors import SoraError
from sora_cli.core.lock import FILE_NAME, locked

HOLD = """
import sys, time
from pathlib import Path
from sora_cli.core.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(directory: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_the_other_process_is_named_and_its_death_frees_the_lock(tmp_path: Path) -> None:
    holder = _holder(tmp_path / "out")
    try:
        with pytest.raises(SoraError) as caught, locked(tmp_path / "out"):
            pytest.fail("two at once")
        assert f"process {holder.pid} on " in caught.value.what
        assert "output.dir=DIR" in caught.value.lines()[-1]
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / "out" / FILE_NAME).exists()  # it could not tidy up
    with locked(tmp_path / "out"):
        assert str(os.getpid()) in (tmp_path / "out" / FILE_NAME).read_text()


def test_nothing_is_left(tmp_path: Path) -> None:
    with locked(tmp_path / "deep" / "out"):
        assert (tmp_path / "deep" / "out" / FILE_NAME).exists()
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "out"):
        (tmp_path / "out" / "report.json").write_text("{}")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.json"]


@pytest.mark.parametrize("times", [4, 99])
def test_a_directory_that_others_remove_meanwhile_is_made_again(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends removes its empty directory: between our mkdir and our lock, too."""
    real, left = lock._acquire, iter(range(times))

    def acquire(directory: Path, elsewhere: str) -> object:
        if next(left, None) is not None:
            raise FileNotFoundError(directory)
        return real(directory, elsewhere)

    monkeypatch.setattr(lock, "_acquire", acquire)
    if times > 5:  # it is told then, and not tried for ever
        with pytest.raises(FileNotFoundError), locked(tmp_path / "out"):
            pytest.fail("no lock")
        return
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / FILE_NAME).exists()


def test_a_lock_of_another_program_stays(tmp_path: Path) -> None:
    for content in (b"x", b"5", b"[]", b'{"name": "package-lock"}', b"\xff\xfe"):
        (tmp_path / FILE_NAME).write_bytes(content)
        with pytest.raises(SoraError, match=r"\.lock' was not written by this"), locked(tmp_path):
            pytest.fail("taken")
        assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(SoraError, match="is a file"), locked(tmp_path / "out"):
        pytest.fail("locked")


def test_only_the_main_process_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "out"):
        assert not (tmp_path / "out").exists()


def test_many_at_once_take_turns(tmp_path: Path) -> None:
    """Whoever gets in is alone, also while others take the file away."""
    code = """
import sys
from pathlib import Path
from sora_cli.core import lock
from sora_cli.core.errors import SoraError
from sora_cli.core.lock import locked
folder, alone = Path(sys.argv[1]), Path(sys.argv[2])
print("started", flush=True)
sys.stdin.readline()  # all begin together
times = 0
for _ in range(1000):
    try:
        with locked(folder):
            alone.mkdir()
            alone.rmdir()
            times += 1
    except SoraError:
        pass
print(times)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "alone")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    turns = [int(process.communicate()[0]) for process in started]
    assert all(process.returncode == 0 for process in started)
    assert sum(turns) > 10
