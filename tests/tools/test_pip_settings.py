"""uv looks for packages where pip is told to."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.shared_files import ROOT
from tools.pip_settings import uv_options


def test_a_setting_of_one_command_and_the_environment_win() -> None:
    lines = [
        ":env:.find-links='/env'", "global.find-links='/all'", "global.constraint='/a.txt /b.txt'",
        "install.index-url='/for/install'", "global.index-url='/all'", "download.index-url='/no'",
        "global.cert='/cert'", "global.extra-index-url='\\n/one\\n/two'",
    ]  # fmt: skip
    assert [*uv_options(lines)] == [
        "--constraint", "/a.txt", "--constraint", "/b.txt", "--extra-index-url", "/one",
        "--extra-index-url", "/two", "--find-links", "/env", "--index-url", "/for/install",
    ]  # fmt: skip


def test_pips_own_settings_are_read(tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\nconstraint = {tmp_path}/c.txt\nfind-links = /elsewhere\n")
    environment = {"PIP_CONFIG_FILE": str(settings), "PIP_FIND_LINKS": "/wheels"}
    told = subprocess.check_output(
        [sys.executable, "-m", "tools.pip_settings"], cwd=ROOT, env=os.environ | environment,
        text=True,
    )  # fmt: skip
    words = shlex.split(told)
    assert words[words.index("--find-links") :][:2] == ["--find-links", "/wheels"]
    assert f"{tmp_path}/c.txt" in words
