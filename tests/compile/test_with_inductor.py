"""Each kind of graph once through the real compiler; the slow tests compile many more, the others none."""

from functools import partial
from unittest import mock

import pytest
import torch
from pyro.infer import Trace_ELBO

import ppvae
from ppvae.distributions import ConditionalNormal
from ppvae.nn import MLP
from ppvae.sampling.annealed_path import GeometricPath
from ppvae.sampling.posterior_draws import posterior_sampler
from tests.compile.compiling import D, K, assert_same, binary, compiled_graphs, make_vae

pytestmark = pytest.mark.inductor


@pytest.fixture(autouse=True)
def inductor(monkeypatch):
    compiler = mock.Mock(wraps=torch._inductor.compile)
    monkeypatch.setattr("torch._inductor.compile", compiler)
    yield
    assert compiler.call_count == 1


def make_random():
    """A VAE whose encoder draws numbers and keeps running averages."""
    pair = make_vae()
    pair.q_z_given_x = ConditionalNormal(MLP(D, (4,), (2, K), norm="batch", dropout=0.3))
    return pair


def test_a_step_with_random_numbers_and_buffers():
    sgd = partial(torch.optim.SGD, lr=1e-3)  # of the optimizers the one whose step is the fewest operations
    svi = assert_same(make_random, Trace_ELBO, [(binary(),)], optim=sgd)
    assert compiled_graphs(svi) == 1


def test_a_block_of_a_likelihood():
    pair, x = make_vae(), binary(6)
    eager, compiled = (ppvae.log_marginal(pair, x, num_samples=1500, compile=compile) for compile in (False, True))
    torch.testing.assert_close(compiled.values, eager.values, rtol=1e-5, atol=1e-4)


def test_the_densities_along_an_annealed_path():
    with posterior_sampler(make_vae(), (binary(9),)) as c:
        eager, compiled = (GeometricPath(c, "guide", compile=compile) for compile in (False, True))
        u = eager.draw(c, 4)[0] + 0.5
        for name, value in vars(eager(c, u)).items():
            torch.testing.assert_close(getattr(compiled(c, u), name), value, rtol=1e-4, atol=1e-4)
