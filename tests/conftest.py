"""Two workers run the tests side by side, each on one thread: threads of two that share cores wait for each other."""

import os
import tempfile
from pathlib import Path

import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")  # each with a cache of compiled code of its own
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"ppvae_tests_{os.getuid()}_{worker}")
