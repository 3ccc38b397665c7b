"""The code of the pages runs, given what each block takes for granted."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"

PAIR = """
import torch
import ppvae
from torch import nn
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import PPCA, VAE
from ppvae.nn import MLP
"""
IMAGES = (
    PAIR
    + """
from ppvae.data import load
digits = load("digits")
shape, k = (1, 8, 8), 4
vae = pair = VAE(
    p_z=StandardNormal(k),
    p_x_given_z=ConditionalBernoulli(MLP(k, (32,), shape)),
    q_z_given_x=ConditionalNormal(MLP(shape, (32,), (2, k))),
)
x_train, y_train = digits.train.x[:200].round(), digits.train.y[:200]
x, x_test = digits.valid.x[:40].round(), digits.test.x[:100].round()
"""
)
SERIES = (
    PAIR
    + """
x = torch.randn(60, 8)
pair = PPCA(8, 2, guide="amortized")
train, valid = x[:40], x[40:]
"""
)
REGRESSION = (
    PAIR
    + """
import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal

def model(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

x = torch.randn(30)
y = 0.5 * x + torch.randn(30)
pair = ppvae.Pair(model, AutoNormal(model))
ppvae.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO()).step(x, y)
"""
)
FUNCTIONS = """
import torch
import pyro
import pyro.distributions as dist
from pyro.infer import Trace_ELBO

def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

def guide(x):
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 1.0))

x = torch.randn(40)
"""
TABLE = """
import pandas as pd
frame = pd.DataFrame({"size": [1.5, None, 2.5, 3.0] * 10, "kind": ["a", "b", "b", None] * 10})
"""
STANDARD = "import torch; x_train = 100 + 5 * torch.randn(50, 20)"
PART = (
    IMAGES
    + """
seen = torch.zeros_like(x, dtype=torch.bool)
seen[:, :, :4] = True
net = MLP(128, (16,), (2, k))
"""
)
TEXTS = (
    PAIR
    + """
from ppvae.data import LengthBuckets, Vocabulary
from ppvae.distributions import ConditionalCategorical, ConditionalSequence
from ppvae.models import SequenceVAE
from ppvae.nn import RNN, SequenceDecoder, SequenceEncoder
texts = ["red", "dark red", "blue", "light blue"] * 10
size = len(Vocabulary.of(texts))
decoder = SequenceDecoder(nn.Embedding(size, 8), RNN(8, 8), 2, size)
pair = SequenceVAE(
    p_z=StandardNormal(2),
    p_x_given_z=ConditionalSequence(ConditionalCategorical(decoder, num_classes=size)),
    q_z_given_x=ConditionalNormal(SequenceEncoder(nn.Embedding(size, 8), RNN(8, 8), (2, 2))),
)
"""
)

BEFORE = {
    "callbacks.md": [SERIES] * 4,
    "evaluation.md": [REGRESSION, IMAGES, "", IMAGES],
    "objectives.md": [""] * 4,
    "pyro.md": [FUNCTIONS],
    "your-own-data.md": [STANDARD, TABLE, PART, "", TEXTS],
}
"""What each block of a page takes for granted; an empty one goes on from the block before it."""
QUICK = {r"epochs=\d+": "epochs=1", r"num_samples=1000": "num_samples=10", r"subset\((\d)\d_000": r"subset(\g<1>_00"}


class Recorded(SimpleNamespace):
    """A logger that takes everything, in the place of one that is not installed."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: Recorded()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", BEFORE)
def test_every_block_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for logger in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, logger, Recorded(summary={}))
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for i, (before, block) in enumerate(zip(BEFORE[name], blocks, strict=True)):
        if "TensorBoard" in block and not find_spec("tensorboard"):
            continue
        for full, quick in QUICK.items():
            block = re.sub(full, quick, block)
        exec(before, names)
        exec(compile(block, f"{name}, block {i + 1}", "exec"), names)
