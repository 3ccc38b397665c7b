"""What the tests of the compiled step share: pairs, and the comparison with the eager step."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import SVI
from ppvae.models import VAE
from ppvae.nn import MLP

D, K, N = 12, 3, 8


def make_vae(**options):
    """A VAE of affine nets, so that graphs are short; of a hidden layer each where options are about that."""
    hidden = (16,) if options else ()
    return VAE(
        p_z=StandardNormal(K),
        p_x_given_z=ConditionalBernoulli(MLP(K, hidden, D, **options)),
        q_z_given_x=ConditionalNormal(MLP(D, hidden, (2, K), **options)),
    )


def concatenate(a, b):
    shape = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*shape, -1), b.expand(*shape, -1)], -1)


class SemiSupervised(nn.Module):
    """y ~ Categorical, z ~ N(0, I), x ~ p(x|z, y); y is enumerated where it is not given."""

    def __init__(self):
        super().__init__()
        self.p_z = StandardNormal(K)
        self.p_x_given_zy = ConditionalBernoulli(MLP(K + 4, (), D))
        self.q_z_given_xy = ConditionalNormal(MLP(D + 4, (), (2, K)))
        self.q_y_given_x = MLP(D, (), 4)

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(4)), obs=y)
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", self.p_x_given_zy(concatenate(z, y)), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                q_y = dist.OneHotCategorical(logits=self.q_y_given_x(x))
                y = pyro.sample("y", q_y, infer={"enumerate": "parallel"})
            pyro.sample("z", self.q_z_given_xy(concatenate(x, y)))


class TwoLevels(nn.Module):
    """z2 ~ N(0, I), z1 ~ p(z1|z2), x ~ p(x|z1), with a flow in the guide of z2."""

    def __init__(self):
        super().__init__()
        self.p_z2 = StandardNormal(2)
        self.p_z1_given_z2 = ConditionalNormal(MLP(2, (), (2, K)))
        self.p_x_given_z1 = ConditionalBernoulli(MLP(K, (8,), D, activation="tanh"))
        self.q_z1_given_x = ConditionalNormal(MLP(D, (), (2, K)))
        self.q_z2_given_z1 = ConditionalNormal(MLP(K, (), (2, 2)))
        self.flow = dist.transforms.Planar(2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.p_z2())
            z1 = pyro.sample("z1", self.p_z1_given_z2(z2))
            pyro.sample("x", self.p_x_given_z1(z1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.q_z1_given_x(x))
            pyro.sample("z2", dist.TransformedDistribution(self.q_z2_given_z1(z1), [self.flow]))


def binary(n=N, seed=0):
    return torch.bernoulli(torch.full((n, D), 0.4), generator=torch.Generator().manual_seed(seed))


def train(pair, loss, batches, *, compile, optim=None, steps=20, device="cpu", before_step=None, **options):
    """Losses and state after some steps, and the SVI."""
    optim = optim or partial(torch.optim.Adam, lr=1e-2, fused=True)
    pair, batches = pair.to(device), [tuple(t.to(device) for t in batch) for batch in batches]
    svi = SVI(pair.model, pair.guide, optim, loss, compile=compile, **options)
    torch.manual_seed(1)
    losses = []
    for i in range(steps):
        if before_step is not None:
            before_step(svi, i)
        losses.append(svi.step(*batches[i % len(batches)]))
    return losses, {name: value.detach().clone() for name, value in pair.state_dict().items()}, svi


def compiled_graphs(svi):
    return svi._compiled.num_graphs


def recordings(svi):
    return [graph.recording for graph in svi._compiled._graphs if graph.recording is not None]


def assert_same(make, loss, batches, **options):
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        results.append(train(make(), loss(), batches, compile=compile, **options))
    (eager, eager_state, _), (compiled, compiled_state, svi) = results
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(eager), rtol=1e-5, atol=1e-5)
    for name, value in eager_state.items():
        torch.testing.assert_close(compiled_state[name], value, rtol=1e-4, atol=1e-5, msg=name)
    return svi
