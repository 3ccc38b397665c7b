"""Codes, and what the model makes of them, of any pair: against the models' own queries, and latents by hand."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, FlowPosterior, StandardNormal
from ppvae.evaluate import encode, interpolate, reconstruct, traverse
from ppvae.models import CVAE, VAE, HierarchicalVAE
from ppvae.nn import MLP, ConditionalMLP, OneHot

N, D, K = 6, 4, 3
EVENT = (1, 2, 2)


def images(n=N, seed=0):
    return torch.bernoulli(torch.full((n, *EVENT), 0.5), generator=torch.Generator().manual_seed(seed))


def vae(**options):
    torch.manual_seed(0)
    posterior = options.pop("q_z_given_x", None) or ConditionalNormal(MLP(EVENT, (8,), (2, K)))
    return VAE(StandardNormal(K), ConditionalBernoulli(MLP(K, (8,), EVENT)), posterior)


class Stubborn(VAE):
    """A pair whose code does not broadcast: samples are repeated along its data."""

    def model(self, x):
        assert x.dim() == 4
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", self.p_x_given_z(z.reshape(len(x), K)), obs=x)


class Counts(nn.Module):
    """Two latents, one in a plate of its own and one discrete; two observed sites."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(D, D)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)))
            with pyro.plate("parts", D, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.movedim(-2, -1), 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(z.sum(-2) + c, 1.0), obs=y)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            with pyro.plate("parts", D, dim=-2):
                pyro.sample("z", dist.Normal(self.net(x).movedim(-1, -2), 1.0))


def same(a, b):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b).detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cls", [VAE, Stubborn])
def test_a_vae_gives_what_its_own_queries_give(cls):
    torch.manual_seed(0)
    pair = cls(
        StandardNormal(K), ConditionalBernoulli(MLP(K, (8,), EVENT)), ConditionalNormal(MLP(EVENT, (8,), (2, K)))
    ).eval()
    x, other = images(), images(seed=1)
    same(encode(pair, x), pair.encode(x).mean)
    same(reconstruct(pair, x), pair.reconstruct(x))
    same(interpolate(pair, x, other, num_steps=4), pair.interpolate(x, other, 4))
    swept = traverse(pair, x, units=[2, 0], values=(-1.0, 0.5, 2.0))
    z = pair.encode(x).mean.detach().clone()
    z[:, 0] = 0.5
    same(swept[:, 1, 1], pair.decode(z).mean)
    assert swept.shape == (N, 2, 3, *EVENT)


def test_an_array_for_scikit_learn():
    code = ppvae.encode(vae(), images().numpy())
    assert isinstance(code, np.ndarray)
    assert code.dtype == np.float32
    assert code.shape == (N, K)


def test_blocks_of_data_give_the_whole(monkeypatch):
    pair, x = vae(), images()
    whole = encode(pair, x), reconstruct(pair, x)
    monkeypatch.setattr("ppvae.sampling.sampler._rows", lambda *_: 2)
    same(encode(pair, x), whole[0])
    same(reconstruct(pair, x), whole[1])


def test_a_hierarchy_is_at_the_means_all_the_way():
    torch.manual_seed(0)
    pair = HierarchicalVAE(
        p_z=[ConditionalNormal(MLP(2, (4,), (2, K))), StandardNormal(2)],
        p_x_given_z=ConditionalBernoulli(MLP(K, (8,), EVENT)),
        q_z=[ConditionalNormal(MLP(EVENT, (8,), (2, K))), ConditionalNormal(MLP(K, (4,), (2, 2)))],
    ).eval()
    x = images()
    z1 = pair.q_z[0](x).mean
    same(encode(pair, x, sites=["z1"]), z1)
    same(encode(pair, x, sites=["z2"]), pair.q_z[1](z1).mean)
    same(encode(pair, x, sites=["z1", "z2"]), torch.cat([z1, pair.q_z[1](z1).mean], -1))
    same(reconstruct(pair, x), pair.p_x_given_z(z1).mean)
    assert traverse(pair, x, latent="z2", values=(0.0,)).shape == (N, 2, 1, *EVENT)
    with pytest.raises(ValueError, match=r"latent must be one of \['z2', 'z1'\], got None"):
        traverse(pair, x)


def test_a_condition_stays_along_a_line():
    torch.manual_seed(0)
    net = partial(ConditionalMLP, embed=OneHot(2))
    pair = CVAE(
        StandardNormal(K),
        ConditionalBernoulli(net(K, 2, (8,), EVENT)),
        ConditionalNormal(net(EVENT, 2, (8,), (2, K))),
    ).eval()
    x, other, y = images(), images(seed=1), torch.tensor([0, 1] * (N // 2))
    lines = interpolate(pair, (x, y), (other, 1 - y), num_steps=3)
    z = (pair.encode(x, y).mean + pair.encode(other, 1 - y).mean) / 2
    same(lines[:, 0], reconstruct(pair, x, y))
    same(lines[:, 1], pair.decode(z, y).mean)
    assert lines.shape == (N, 3, *EVENT)


def test_several_latents_and_sites_in_plates():
    pair, x = Counts(), torch.randn(N, D)
    y = torch.randn(N)
    same(encode(pair, x, y), pair.net(x))
    same(reconstruct(pair, x, y, site="x"), pair.net(x))
    same(reconstruct(pair, x, y, site="y"), pair.net(x).sum(-1) + 1)  # the most probable class
    swept = traverse(pair, x, y, latent="z", units=[1], values=(5.0,), site="x")
    expected = pair.net(x).detach().clone()
    expected[:, 1] = 5.0
    same(swept[:, 0, 0], expected)
    with pytest.raises(ValueError, match=r"site must be one of \['x', 'y'\], got None"):
        reconstruct(pair, x, y)
    with pytest.raises(ValueError, match=r"sites must be latents of the model, .* not 'w'"):
        encode(pair, x, y, sites=["w"])


def test_a_flow_is_averaged_over_draws_of_the_seed():
    pair = vae(q_z_given_x=FlowPosterior(MLP(EVENT, (8,), (3, K)), flow="iaf"))
    x = images()
    assert np.array_equal(encode(pair, x, seed=1), encode(pair, x, seed=1))
    assert not np.array_equal(encode(pair, x, seed=1), encode(pair, x, seed=2))
    draws = pair.encode(x).sample((4000,))
    assert float((torch.from_numpy(encode(pair, x)) - draws.mean(0)).abs().max()) < 6 * float(draws.std(0).max()) / 8


def test_bad_input_is_named():
    pair, x = vae(), images()
    with pytest.raises(ValueError, match="num_steps must be a whole number >= 2, got 1"):
        interpolate(pair, x, x, num_steps=1)
    with pytest.raises(ValueError, match="data_to must hold as many data as data_from, 6, got 4"):
        interpolate(pair, x, x[:4])
    with pytest.raises(ValueError, match="units must be numbers of elements of 'z', 0 to 2, got 3"):
        traverse(pair, x, units=[0, 3])
    with pytest.raises(TypeError, match="sites must be a list of names of sites, got 'z'"):
        encode(pair, x, sites="z")


def test_the_pair_and_the_random_state_stay():
    pair, state = vae().train(), torch.get_rng_state()
    encode(pair, images())
    traverse(pair, images())
    assert pair.training
    assert torch.equal(state, torch.get_rng_state())
