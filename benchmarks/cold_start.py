"""Seconds of the first steps of a compiled run: on a machine that never compiled, that did, and that did this graph.

Run with `python benchmarks/cold_start.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

STEPS = """
import time
from functools import partial
import torch
from pyro.infer import Trace_ELBO
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import SVI
from ppvae.models import VAE
from ppvae.nn import MLP

vae = VAE(
    StandardNormal(20), ConditionalBernoulli(MLP(20, (400,), 784)), ConditionalNormal(MLP(784, (400,), (2, 20)))
)
x = torch.bernoulli(torch.full((128, 784), 0.3))
optim = partial(torch.optim.Adam, lr=1e-3, fused=True)
svi = SVI(vae.model, vae.guide, optim, Trace_ELBO(), compile=True)
for _ in range(3):
    began = time.perf_counter()
    svi.step(x)
    print(f"{time.perf_counter() - began:10.2f}", end="")
print()
"""


def main() -> None:
    """Prints the table: the first step runs eagerly, the second compiles, the third is one of many."""
    print(f"{'what is there':<28}{'step 1, s':>10}{'step 2, s':>10}{'step 3, s':>10}")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        everything_new = {"TMPDIR": folder}  # Inductor keeps its precompiled C++ headers apart from its cache
        for name, changed in (
            ("nothing", everything_new),
            ("headers", everything_new | {"TORCHINDUCTOR_CACHE_DIR": cache}),
            ("headers and this graph", everything_new),
        ):
            command = [sys.executable, "-c", STEPS]
            environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"} | changed
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            print(f"{name:<28}{result.stdout.rstrip()}", flush=True)


if __name__ == "__main__":
    main()
