"""Several `sora` command lines, one after the other, in the processes that torchrun started.

    torchrun --nproc-per-node 2 -m tests.launched COMMANDS.json

The file holds a list of {"words": [...], "stop": STEP or null}: in that step the process of rank 1
alone gets SIGTERM. What each process's commands gave is written beside it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sora_cli.app import run
from sora_cli.core.processes import rank
from sora_cli.train.callback import MethodCallback
from tests import blank, warm
from tests.shared_files import ROOT

MODULE = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Call torchrun with two processes, on its own free port."""
    environment = {**warm.ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [warm.python(warm.OURS), *MODULE, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def launch_commands(folder: Path, commands: list[dict[str, Any]], *, timeout: float = 300) -> str:
    """Carry out commands of this module in two processes; return what they printed."""
    file = folder / "commands.json"
    file.write_text(json.dumps(commands))
    done = launch("-m", "tests.launched", str(file), timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def main(file: Path) -> None:
    """Run all commands."""
    torch.set_num_threads(1)
    blank.install()
    codes = [_one(**command) for command in json.loads(file.read_text(encoding="utf-8"))]
    file.with_suffix(f".{rank()}.json").write_text(json.dumps(codes), encoding="utf-8")


def _one(words: list[str], stop: int | None) -> dict[str, Any]:
    live: list[list[int]] = []
    inner = MethodCallback.on_optimizer_step

    def followed(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        inner(self, args, state, control, **kwargs)
        live.append([int(m.d.count_nonzero()) if m.d is not None else m.rank
                     for m in self.layers.values()])  # fmt: skip
        if rank() == 1 and state.global_step + 1 == stop:
            signal.raise_signal(signal.SIGTERM)

    MethodCallback.on_optimizer_step = followed  # type: ignore[method-assign]
    try:
        return {"code": run(words), "live": live}
    finally:
        MethodCallback.on_optimizer_step = inner  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
