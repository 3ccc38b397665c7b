"""Chains of discrete latents whose joint values are too many to try each, against the forward algorithm."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import ppvae
from ppvae.objectives import IWAE
from ppvae.sampling import enumeration

K = 3


class HMM(nn.Module):
    """y_t ~ p(y_t|y_{t-1}), x_t ~ N(m[y_t], 1), as long as each datum says; subclasses add to it."""

    one_hot = False

    def __init__(self):
        super().__init__()
        self.first, self.next = nn.Parameter(torch.randn(K)), nn.Parameter(torch.randn(K, K))
        self.means = nn.Parameter(1.5 * torch.arange(K).float())

    def times(self, x):
        return pyro.markov(range(x.shape[1]))

    def model(self, x, length):
        with pyro.plate("data", len(x)):
            y = None
            for t in self.times(x):
                with poutine.mask(mask=t < length):
                    logits = self.first if y is None else self.step(y)
                    y = pyro.sample(f"y_{t}", self.latent(logits), infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", dist.Normal(self.mean(y), 1.0), obs=x[:, t])

    def latent(self, logits):
        return dist.OneHotCategorical(logits=logits) if self.one_hot else dist.Categorical(logits=logits)

    def step(self, y):
        return y @ self.next if self.one_hot else self.next[y]

    def mean(self, y):
        return y @ self.means if self.one_hot else self.means[y]

    def guide(self, x, length):
        pass

    @torch.no_grad()
    def forward_algorithm(self, x, length):
        first, step = self.first.double().log_softmax(-1), self.next.double().log_softmax(-1)
        log_x = dist.Normal(self.means.double(), 1.0).log_prob(x.double().unsqueeze(-1))
        alpha = first + log_x[:, 0]
        for t in range(1, x.shape[1]):
            further = (alpha.unsqueeze(-1) + step).logsumexp(1) + log_x[:, t]
            alpha = torch.where((t < length).unsqueeze(-1), further, alpha)
        return alpha.logsumexp(-1)


class OneHot(HMM):
    one_hot = True


class WithLatent(HMM):
    """A continuous latent of the whole series, drawn by the guide."""

    def model(self, x, length):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            y = None
            for t in self.times(x):
                y = pyro.sample(f"y_{t}", self.latent(self.first if y is None else self.step(y)), infer=dict(marked))
                pyro.sample(f"x_{t}", dist.Normal(self.mean(y) + z, 1.0), obs=x[:, t])

    def guide(self, x, length):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.8))


class WithLabel(WithLatent):
    """A label that the guide marks for enumeration besides."""

    def model(self, x, length):
        with pyro.plate("data", len(x)):
            label = pyro.sample("label", dist.Bernoulli(0.3))
            y = None
            for t in self.times(x):
                y = pyro.sample(f"y_{t}", self.latent(self.first if y is None else self.step(y)), infer=dict(marked))
                pyro.sample(f"x_{t}", dist.Normal(self.mean(y) + label, 1.0), obs=x[:, t])

    def guide(self, x, length):
        with pyro.plate("data", len(x)):
            pyro.sample("label", dist.Bernoulli(x.mean(-1).sigmoid()), infer=dict(marked))


class InPlate(WithLatent):
    """Two chains side by side in a plate inside, and a latent that both share."""

    def model(self, x, length):
        inside = pyro.plate("inside", 2, dim=-2)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with inside:
                y = None
                for t in self.times(x):
                    y = pyro.sample(
                        f"y_{t}", self.latent(self.first if y is None else self.step(y)), infer=dict(marked)
                    )
                    means = self.mean(y) * torch.tensor([[1.0], [-1.0]]) + z
                    pyro.sample(f"x_{t}", dist.Normal(means, 1.0), obs=x[:, t].expand(2, -1))


class Stubborn(WithLatent):
    """Code that does not broadcast over an outer plate."""

    def model(self, x, length):
        super().model(x, length)
        with pyro.plate("again", len(x)):
            w = pyro.sample("w", dist.Normal(x[:, 0], 1.0), obs=x[:, 0])
            assert w.dim() == 1

    def guide(self, x, length):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.mean(-1), 0.8))
            assert z.dim() == 1


marked = {"enumerate": "parallel"}


def data(n=9, steps=4):
    return 2 * torch.randn(n, steps), torch.randint(1, steps + 1, (n,))


@pytest.mark.parametrize("kind", [HMM, OneHot])
@pytest.mark.parametrize(("n", "num_samples"), [(1, 4), (9, 1)])
def test_a_long_chain_has_the_likelihood_of_the_forward_algorithm(kind, n, num_samples):
    """Of more joint values than anybody could try."""
    pair, (x, length) = kind(), data(n, 40)
    exact = pair.forward_algorithm(x, length)
    for estimate in (ppvae.log_marginal, ppvae.elbo):
        found = estimate(pair, x, length, num_samples=num_samples)
        torch.testing.assert_close(found.values.double(), exact, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", [HMM, OneHot, WithLatent, WithLabel, InPlate, Stubborn])
def test_it_is_the_number_of_trying_each_value(kind, monkeypatch):
    pair, batch = kind(), data(7, 2 if kind is InPlate else 4)
    tried = [estimate(pair, *batch, num_samples=20).values for estimate in (ppvae.log_marginal, ppvae.elbo)]
    monkeypatch.setattr(enumeration, "MAX_VALUES", 2)
    summed = [estimate(pair, *batch, num_samples=20).values for estimate in (ppvae.log_marginal, ppvae.elbo)]
    torch.testing.assert_close(summed, tried, rtol=1e-5, atol=1e-4)


def test_compiled_it_is_the_same():
    pair, batch = WithLatent(), data(4, 12)
    eager, compiled = (ppvae.log_marginal(pair, *batch, num_samples=1500, compile=c).values for c in (False, True))
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-4)


class TwoBack(HMM):
    """Depends on the latent before the last, of which pyro.markov is told or not."""

    history = 1

    def times(self, x):
        return pyro.markov(range(x.shape[1]), history=self.history)

    def model(self, x, length):
        with pyro.plate("data", len(x)):
            ys = []
            for t in self.times(x):
                logits = self.next[ys[-2]] if t > 1 else self.first
                ys.append(pyro.sample(f"y_{t}", dist.Categorical(logits=logits), infer=dict(marked)))
                pyro.sample(f"x_{t}", dist.Normal(self.means[ys[-1]], 1.0), obs=x[:, t])


class SeesTwoBack(TwoBack):
    """The data depend on the latent before the last, and Pyro does not notice."""

    def model(self, x, length):
        with pyro.plate("data", len(x)):
            ys = []
            for t in self.times(x):
                ys.append(pyro.sample(f"y_{t}", dist.Categorical(logits=self.first), infer=dict(marked)))
                before = self.means[ys[-3]] if t > 1 else 0.0
                pyro.sample(f"x_{t}", dist.Normal(self.means[ys[-1]] + before, 1.0), obs=x[:, t])


class Told(TwoBack):
    history = 2


class AcrossPlate(HMM):
    """Depends on the sum of a plate that it does not lie in."""

    def model(self, x, length):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("inside", 12, dim=-2):
                y = pyro.sample("y", dist.Categorical(logits=self.first), infer=dict(marked))
            pyro.sample("x", dist.Normal(self.means[y].sum(-2, keepdim=True), 1.0), obs=x[:, 0])


class LatentOfChain(WithLatent):
    """A drawn latent depends on the chain."""

    def model(self, x, length):
        with pyro.plate("data", len(x)):
            y = None
            for t in self.times(x):
                y = pyro.sample(f"y_{t}", self.latent(self.first if y is None else self.step(y)), infer=dict(marked))
                pyro.sample(f"x_{t}", dist.Normal(self.mean(y), 1.0), obs=x[:, t])
            pyro.sample("z", dist.Normal(self.mean(y), 1.0))


class Unrolled(HMM):
    """No word of pyro.markov."""

    def times(self, x):
        return range(x.shape[1])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (TwoBack, "depends on no earlier ones than its history"),
        (SeesTwoBack, "'x_2' depends on them in a way that Pyro cannot see"),
        (AcrossPlate, "'x' depends on them in a way that Pyro cannot see"),
        (LatentOfChain, "site 'z' depends on the latents .* what is drawn, or given, must not"),
        (Unrolled, r"write a chain as `for t in pyro.markov\(range"),
    ],
)
def test_what_cannot_be_summed_one_after_another_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        ppvae.log_marginal(kind(), *data(6, 100 if kind is Unrolled else 9), num_samples=10)


def test_a_history_that_is_told_is_kept(monkeypatch):
    pair, batch = Told(), data(7, 5)
    tried = ppvae.log_marginal(pair, *batch, num_samples=4).values
    monkeypatch.setattr(enumeration, "MAX_VALUES", 2)
    torch.testing.assert_close(ppvae.log_marginal(pair, *batch, num_samples=4).values, tried, rtol=1e-5, atol=1e-4)


def test_what_is_given_must_not_depend_on_the_chain():
    with pytest.raises(ValueError, match="what is drawn, or given, must not depend on such a chain"):
        ppvae.log_marginal(HMM(), *data(6, 9), num_samples=10, given=["x_0"])


def test_objectives_that_draw_refuse_it():
    pair, (x, length) = WithLatent(), data(6, 9)
    with pytest.raises((ValueError, NotImplementedError), match="marked to be summed over"):
        IWAE(3).differentiable_loss(pair.model, pair.guide, x, length)
