"""One thread a test process (pytest runs one per core), no network, nothing left in the home."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
_CACHE = tempfile.TemporaryDirectory(prefix="sora-tests-")  # removed when the process ends
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_DATASETS_CACHE"] = f"{_CACHE.name}/datasets"

import torch  # noqa: E402 (reads the variables above)

torch.set_num_threads(1)
