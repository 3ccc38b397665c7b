"""`fit` with a compiled step against `fit` with an eager one."""

import copy
import os
from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.checkpoint import checkpoint

import ppvae
from ppvae.compile.policy import COST
from ppvae.data import Batches, Binarize, binarize, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import SVI
from ppvae.infer.svi import SAVED
from ppvae.models import VAE
from ppvae.nn import MLP
from ppvae.objectives import Linear
from tests.compile.compiling import (
    binary,
    compiled_graphs,
    make_vae,
)


class Checkpointed(nn.Module):
    """A net whose activations are computed again in the backward pass."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


def test_activation_checkpointing_passes_the_tracer():
    torch.manual_seed(0)
    x = binary()
    d = x.shape[-1]
    decoder, encoder = (Checkpointed(MLP(*sizes)) for sizes in ((2, (8,), d), (d, (8,), (2, 2))))
    pair = VAE(StandardNormal(2), ConditionalBernoulli(decoder), ConditionalNormal(encoder))
    start, losses = copy.deepcopy(pair.state_dict()), {}
    for compile in (False, True):
        pair.load_state_dict(start)
        svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses[compile] = [svi.step(x) for _ in range(4)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert compiled_graphs(svi) == 1


def test_auto_compiles_only_long_runs():
    pair, repaying = make_vae(), int(COST / SAVED)
    svi = SVI(pair.model, pair.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO())
    svi.planned_steps = repaying - 1
    for _ in range(3):
        svi.step(binary())
    assert compiled_graphs(svi) == 0
    svi.planned_steps = repaying
    svi.step(binary())
    assert compiled_graphs(svi) == 1


@pytest.mark.usefixtures("with_and_without_inductor")
def test_fit_compiled_equals_fit_eager():
    histories = []
    for compile in (False, True):
        torch.manual_seed(0)
        run = ppvae.fit(
            make_vae(norm="batch"),
            binary(30),
            binary(10, seed=1),
            epochs=4,
            batch_size=8,
            kl_weight=Linear(2.0),
            kl_sites=["z"],
            compile=compile,
            progress=False,
        )
        histories.append(run.history)
    for eager, compiled in zip(*histories, strict=True):
        assert compiled == pytest.approx(eager, rel=1e-3)  # Adam magnifies rounding in the first steps


@pytest.mark.usefixtures("with_and_without_inductor")
def test_a_compiled_run_resumes_bit_for_bit(tmp_path):
    def run(out, epochs, **options):
        torch.manual_seed(0)
        return ppvae.fit(
            make_vae(), binary(30), epochs=epochs, batch_size=8, compile=True, out=out, progress=False, **options
        )

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4, resume=True)
    assert parts.history == whole.history
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.skipif("PPVAE_DATA" not in os.environ, reason="PPVAE_DATA names no folder with MNIST")
def test_training_curves_on_mnist_agree():
    x = load("mnist", os.environ["PPVAE_DATA"], download=False).train.x[:5000].flatten(1)
    curves = []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = VAE(
            p_z=StandardNormal(10),
            p_x_given_z=ConditionalBernoulli(MLP(10, (64,), 784)),
            q_z_given_x=ConditionalNormal(MLP(784, (64,), (2, 10))),
        )
        batches = Batches(x, batch_size=100, transform=Binarize())
        run = ppvae.fit(vae, batches, binarize(x[:500]), epochs=4, compile=compile, progress=False)
        curves.append([(row["elbo"], row["valid_elbo"]) for row in run.history])
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=0.0)
