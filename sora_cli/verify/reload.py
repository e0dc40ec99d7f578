"""Load files and compute their outputs in a fresh process, which shares no state with their writer.

Inputs go there and outputs come back as safetensors files in a temporary directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sora_cli.core.boundary import guarded
from sora_cli.core.environment import PACKAGE
from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import dtype_name
from sora_cli.verify.outputs import Outputs, compute_outputs
from sora_cli.verify.probes import Probe
from sora_cli.verify.subjects import find_subjects, load_config

_JOB, _INPUTS, _VALUES, _WITHOUT = "job.json", "inputs.st", "values.st", "without.st"


def reload_outputs(
    reference: str, *, base: str | None, auto: str, probe: Probe, dtype: torch.dtype, alone: bool
) -> Outputs:
    """Return the outputs of `compute_outputs` from a new Python process."""
    job = {
        "reference": reference,
        "base": base,
        "auto": auto,
        "dtype": dtype_name(dtype),
        "alone": alone,
        "padding": probe.padding,
        "what": probe.what,
    }
    with tempfile.TemporaryDirectory(prefix="sora-verify-") as scratch:
        folder = Path(scratch)
        # tensors go as safetensors: exact to the bit, and no pickle
        (folder / _JOB).write_text(json.dumps(job), encoding="utf-8")
        save_file({k: v.contiguous() for k, v in probe.inputs.items()}, folder / _INPUTS)
        done = subprocess.run(
            [sys.executable, "-m", "sora_cli.verify.reload", scratch],
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(),
            check=False,
        )
        if done.returncode != 0:
            raise _failure(done.stderr, done.returncode)
        return Outputs(load_file(folder / _VALUES), load_file(folder / _WITHOUT))


def _environment() -> dict[str, str]:
    """Return this process's environment, with this package first on Python's path."""
    root = str(PACKAGE.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, path] if path else [root])}


def _failure(stderr: str, code: int) -> SoraError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
    if start is None:
        last = lines[-1][:200] if lines else "no message"
        return SoraError(f"the reload in a fresh process ended with code {code}: {last}")
    first, *more = lines[start : start + 3]
    where, hint = [*more, None, None][:2]
    text = first.removeprefix("error: ")
    return SoraError(f"in a fresh process: {text}", where=where, hint=hint)


def _work(folder: Path) -> None:
    """Do the fresh process's work."""
    job = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    probe = Probe(load_file(folder / _INPUTS), None, job["padding"], job["what"])
    (subject,) = find_subjects((job["reference"],), base=job["base"], force=True)  # was checked
    config = load_config(subject)
    dtype = getattr(torch, job["dtype"])
    outputs = compute_outputs(subject, config, job["auto"], probe, dtype, alone=job["alone"])
    save_file({k: v.contiguous() for k, v in outputs.values.items()}, folder / _VALUES)
    save_file({k: v.contiguous() for k, v in outputs.without.items()}, folder / _WITHOUT)


if __name__ == "__main__":
    sys.exit(guarded(lambda: _work(Path(sys.argv[1]))))
