"""Summed latents of every arrangement: several sites, in inner plates, under masks, in the model alone."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import nn

import ppvae
from ppvae.evaluate import SupportWarning
from tests.sampling.test_enumeration import PARALLEL, adds_up, close, data, within

T = 3


# Several sites.


class TwoLabels(nn.Module):
    """a ~ Bernoulli, b ~ Categorical(table[a]), x ~ N(2a + b, 1); the guide's q(b|a) is wrong."""

    table = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])

    def log_joint(self, x):
        """Log p(x, a, b), (2, 3, n)."""
        a, b = torch.arange(2.0)[:, None, None], torch.arange(3.0)[:, None]
        prior = torch.tensor([0.7, 0.3]).log()[:, None] + self.table.log()
        return prior.unsqueeze(-1) + dist.Normal(2 * a + b, 1.0).log_prob(x)

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            b = pyro.sample("b", dist.Categorical(self.table[a.long()]))
            pyro.sample("x", dist.Normal(2 * a + b, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(torch.sigmoid(x)), infer=PARALLEL)
            pyro.sample("b", dist.Categorical(self.table[1 - a.long()]), infer=PARALLEL)


def test_two_sites():
    pair, x = TwoLabels(), data()
    log_p = pair.log_joint(x)
    close(ppvae.log_marginal(pair, x, num_samples=2).values, log_p.flatten(0, 1).logsumexp(0))
    q_a = torch.stack([1 - torch.sigmoid(x), torch.sigmoid(x)])
    q = q_a.unsqueeze(1) * pair.table.flip(0).unsqueeze(-1)
    terms = ppvae.elbo(pair, x, num_samples=2)
    close(terms.values, (q * (log_p - q.log())).sum((0, 1)))
    adds_up(terms)
    assert list(terms.kl) == ["a", "b"]


def test_one_summed_and_one_drawn():
    pair, x = TwoLabels(), data()

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(torch.sigmoid(x)))
            pyro.sample("b", dist.Categorical(pair.table[1 - a.long()]), infer=PARALLEL)

    estimate = ppvae.log_marginal(ppvae.Pair(pair.model, guide), x, num_samples=3000)
    within(estimate, pair.log_joint(x).flatten(0, 1).logsumexp(0))


def test_a_site_summed_given_one_that_was_drawn_before_it():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Bernoulli(torch.sigmoid(z)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))
            pyro.sample("y", dist.Bernoulli(torch.sigmoid(z)), infer=PARALLEL)

    pair, x = ppvae.Pair(model, guide), data()
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    for num_samples in (1, 20):  # Σ_y p(y|z) = 1 only where every y has the same z
        close(ppvae.log_marginal(pair, x, num_samples=num_samples).values, exact)
        close(ppvae.elbo(pair, x, num_samples=num_samples).values, exact)


# Inner plates and masks.


class Series(nn.Module):
    """w_t ~ Bernoulli(0.3) in an inner plate, z ~ N(0, 1), x_t ~ N(2w_t, 1) for t below the length, u ~ N(z, 1).

    Args:
        where: which of "model" and "guide" marks w.
        masked: how the steps beyond the length are left out, "handler" or "distribution".
    """

    def __init__(self, where="guide", masked="handler"):
        super().__init__()
        self.where, self.masked = where, masked

    def steps(self, length):
        mask = torch.arange(T).unsqueeze(-1) < length
        return mask, poutine.mask(mask=mask if self.masked == "handler" else torch.tensor(True))

    def w(self, probs, mask):
        w = dist.Bernoulli(probs)
        return w if self.masked == "handler" else w.expand(mask.shape).mask(mask)

    def model(self, x, u, length):
        mask, handler = self.steps(length)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("u", dist.Normal(z, 1.0), obs=u)
            with pyro.plate("time", T, dim=-2), handler:
                w = pyro.sample("w", self.w(0.3, mask), infer=PARALLEL if self.where == "model" else {})
                with poutine.mask(mask=mask):
                    pyro.sample("x", dist.Normal(2 * w, 1.0), obs=x.T)

    def guide(self, x, u, length):
        mask, handler = self.steps(length)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(u / 2, math.sqrt(0.5)))
            if self.where == "guide":
                with pyro.plate("time", T, dim=-2), handler:
                    pyro.sample("w", self.w(0.6, mask), infer=PARALLEL)

    def log_joint(self, x):
        """Log p(x_t, w_t) of each value, (2, n, T)."""
        return torch.stack([dist.Normal(2.0 * w, 1.0).log_prob(x) + math.log(p) for w, p in enumerate((0.7, 0.3))])


@pytest.mark.parametrize("masked", ["handler", "distribution"])
@pytest.mark.parametrize("where", ["guide", "model"])
@pytest.mark.parametrize("num_samples", [1, 20])
def test_a_site_in_an_inner_plate_with_masks(num_samples, where, masked):
    pair = Series(where, masked)
    x, u = data(33).reshape(11, T), data(11, seed=1)
    length = 1 + torch.arange(11) % T
    used = torch.arange(T) < length.unsqueeze(-1)
    log_p, log_u = pair.log_joint(x), dist.Normal(0.0, math.sqrt(2)).log_prob(u)
    exact = torch.where(used, log_p.logsumexp(0), 0.0).sum(-1) + log_u
    garbage = torch.where(used, x, 1e3)
    close(ppvae.log_marginal(pair, garbage, u, length, num_samples=num_samples).values, exact, rtol=1e-4)
    log_q = torch.tensor([0.4, 0.6]).log().reshape(2, 1, 1)
    bound = torch.where(used, (log_q.exp() * (log_p - log_q)).sum(0), 0.0).sum(-1) + log_u
    terms = ppvae.elbo(pair, garbage, u, length, num_samples=num_samples)
    close(terms.values, exact if where == "model" else bound, rtol=1e-4)
    adds_up(terms)


def test_two_inner_plates():
    def model(x):
        with pyro.plate("data", len(x)):
            with pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-3):
                w = pyro.sample("w", dist.OneHotCategorical(torch.tensor([0.2, 0.8])))
            pyro.sample("x", dist.Normal(w[..., 0].sum((-3, -2)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-3):
            pyro.sample("w", dist.OneHotCategorical(torch.tensor([0.5, 0.5])), infer=PARALLEL)

    x, count = data(), torch.arange(7.0)
    prior = dist.Binomial(6, 0.2).log_prob(count)
    exact = (dist.Normal(count, 1.0).log_prob(x.unsqueeze(-1)) + prior).logsumexp(-1)
    for num_samples in (1, 20):
        close(ppvae.log_marginal(ppvae.Pair(model, guide), x, num_samples=num_samples).values, exact)


# In the model alone.


class GaussianMixture(nn.Module):
    """z ~ N(0, 1), y ~ Categorical(π) in the model alone, x ~ N(z + μ_y, 1)."""

    def __init__(self, scale=0.9):
        super().__init__()
        self.probs, self.loc, self.scale = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-2.0, 0.0, 3.0]), scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            y = pyro.sample("y", dist.Categorical(self.probs), infer=PARALLEL)
            pyro.sample("x", dist.Normal(z + self.loc[y], 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 3, self.scale))

    def exact(self, x):
        return (dist.Normal(self.loc, math.sqrt(2)).log_prob(x.unsqueeze(-1)) + self.probs.log()).logsumexp(-1)

    def bound(self, x):
        """E_q[log Σ_y p(x, y, z)] − E_q[log q(z)] by the trapezoid rule."""
        z = (x / 3).unsqueeze(-1) + self.scale * torch.linspace(-8, 8, 2001)
        q = dist.Normal((x / 3).unsqueeze(-1), self.scale).log_prob(z)
        of_y = dist.Normal(z.unsqueeze(-1) + self.loc, 1.0).log_prob(x.reshape(-1, 1, 1)) + self.probs.log()
        return torch.trapezoid(q.exp() * (of_y.logsumexp(-1) + dist.Normal(0.0, 1.0).log_prob(z) - q), z)


def test_a_site_of_the_model_alone():
    pair, x = GaussianMixture(), data()
    within(ppvae.log_marginal(pair, x, num_samples=3000), pair.exact(x))
    terms = ppvae.elbo(pair, x, num_samples=3000)
    within(terms, pair.bound(x))
    adds_up(terms)
    assert list(terms.kl) == ["z", "y"]
    assert (terms.kl["y"] > 0).all()


def test_a_model_marked_as_a_whole():
    pair, x = GaussianMixture(), data()
    for estimate in (ppvae.log_marginal, ppvae.elbo):
        expected = estimate(pair, x, num_samples=20).values
        assert torch.equal(
            estimate(ppvae.Pair(config_enumerate(pair.model), pair.guide), x, num_samples=20).values, expected
        )


def test_sites_of_both():
    """a is the guide's, b the model's: log q(a) + log p(b|a, x) is the posterior that the ELBO is of."""
    labels, x = TwoLabels(), data()

    def model(x):
        poutine.infer_config(labels.model, lambda site: PARALLEL if site["name"] == "b" else {})(x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Bernoulli(torch.sigmoid(x)), infer=PARALLEL)

    log_p = labels.log_joint(x)
    q = torch.stack([1 - torch.sigmoid(x), torch.sigmoid(x)])
    pair = ppvae.Pair(model, guide)
    close(ppvae.log_marginal(pair, x, num_samples=2).values, log_p.flatten(0, 1).logsumexp(0))
    terms = ppvae.elbo(pair, x, num_samples=2)
    close(terms.values, (q * (log_p.logsumexp(1) - q.log())).sum(0))
    adds_up(terms)


@pytest.mark.parametrize("where", ["guide", "model"])
def test_data_that_no_value_explains(where):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer=PARALLEL if where == "model" else {})
            pyro.factor("x", torch.where(x > 0, -y, -math.inf))

    def guide(x):
        with pyro.plate("data", len(x)):
            if where == "guide":
                pyro.sample("y", dist.Bernoulli(0.5), infer=PARALLEL)

    pair, x = ppvae.Pair(model, guide), torch.tensor([1.0, -1.0, 1.0])
    for num_samples in (1, 20):
        terms = ppvae.elbo(pair, x, num_samples=num_samples)
        with pytest.warns(SupportWarning, match="for 1 of 3 data"):
            estimate = ppvae.log_marginal(pair, x, num_samples=num_samples)
        for values in (terms.values, terms.reconstruction, estimate.values):
            assert values[1] == -math.inf
            assert values[[0, 2]].isfinite().all()


# What cannot be summed.


def of_one_site(q, p=None, *, guide_infer=PARALLEL, model_infer=None, in_guide=True):
    """A pair with one latent y, whose distributions are functions of x."""

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", (p or q)(x), infer=model_infer or {})
            pyro.sample("x", dist.Normal(y.float(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            if in_guide:
                pyro.sample("y", q(x), infer=guide_infer)

    return ppvae.Pair(model, guide)


def categorical(c):
    return lambda x: dist.Categorical(torch.ones(c))


def counts(x):
    return dist.Binomial((1 + (x > 2)).float(), 0.5)


SIDE_BY_SIDE = {**PARALLEL, "num_samples": 4}
BROKEN = {
    "too many values": (of_one_site(categorical(1001)), "more than 1000 joint values|too many to sum over"),
    "no list of values": (of_one_site(lambda x: dist.Geometric(0.5)), "values of Geometric cannot be listed"),
    "fewer than the model has": (of_one_site(categorical(2), categorical(3)), "lists 2 values of 'y', and the model 3"),
    "values that depend on the data": (of_one_site(counts), "'y' is marked for enumeration, but"),
    "drawn in the model alone": (
        of_one_site(categorical(2), model_infer=SIDE_BY_SIDE, in_guide=False),
        "the guide misses the latent site 'y'",
    ),
}


@pytest.mark.parametrize("num_samples", [1, 20])
@pytest.mark.parametrize("which", BROKEN)
def test_pairs_whose_sum_would_be_wrong(which, num_samples):
    pair, message = BROKEN[which]
    x = torch.linspace(-2, 3, 11)  # the first of which are alike
    with pytest.raises(ValueError, match=message):
        ppvae.log_marginal(pair, x, num_samples=num_samples)


@pytest.mark.parametrize("num_samples", [1, 20])
def test_a_site_that_depends_on_the_value_of_another(num_samples):
    def sites(x, infer):
        a = pyro.sample("a", dist.Bernoulli(0.5), infer=infer)
        return a + pyro.sample("b", dist.Bernoulli(0.5), infer=infer) if (a < 2).all() and not (a == 1).all() else a

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(sites(x, {}), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            sites(x, PARALLEL)

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="'b' is summed over, but not sampled at every value of the others"):
        ppvae.log_marginal(ppvae.Pair(model, guide), data(), num_samples=num_samples)


def test_too_many_together():
    def model(x, size):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(torch.ones(40)))
            with pyro.plate("time", size, dim=-2):
                b = pyro.sample("b", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal((a + b.sum(0)).float(), 1.0), obs=x)

    def guide(x, size, a=PARALLEL):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Categorical(torch.ones(40)), infer=a)
            with pyro.plate("time", size, dim=-2):
                pyro.sample("b", dist.Categorical(torch.ones(2)), infer=PARALLEL)

    def pair(size, **infer):
        return ppvae.Pair(lambda x: model(x, size), lambda x: guide(x, size, **infer))

    with pytest.raises(ValueError, match="'b' has 2 values in each of 12 elements"):
        ppvae.elbo(pair(12), data())
    with pytest.raises(ValueError, match=r"latents \['a', 'b'\] have more than 1000 joint values"):
        ppvae.elbo(pair(6), data())
    assert ppvae.elbo(pair(6, a={}), data()).values.isfinite().all()


def test_a_label_of_the_guide_alone():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Bernoulli(0.5), infer={**PARALLEL, "is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    def without(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    exact = dist.Normal(0.0, 2**0.5).log_prob(data())
    for of in (guide, without):  # a changes nothing: q is summed over it
        found = ppvae.log_marginal(ppvae.Pair(model, of), data(), num_samples=3000)
        assert ((found.values - exact).abs() < 5 * found.std_error).all()
