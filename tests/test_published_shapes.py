"""Pairs of the shape of Pyro's published examples, small: trained as by Pyro, fitted, scored, saved and loaded."""

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import nn
from torch.distributions import constraints
from torch.nn import functional as F

import ppvae

N, D = 24, 6


@dataclass
class Case:
    """A pair, what `SVI` takes its steps on, its ELBO, and the data that it is fitted and scored on."""

    model: Any
    guide: Any
    steps: list[tuple[tuple[Any, ...], dict[str, Any]]]
    elbo: Any
    data: tuple[Any, ...]
    pair: Any
    fit_loss: Any = None


def binary(n=N, d=D):
    return (torch.rand(n, d) < 0.4).float()


class Labels(nn.Module):
    """As ss_vae_M2: labels that are sometimes given, a plate without a size, networks that are registered by name."""

    def __init__(self):
        super().__init__()
        self.classify, self.encode, self.decode = nn.Linear(D, 3), nn.Linear(D + 3, 4), nn.Linear(2 + 3, D)

    def model(self, xs, ys=None):
        pyro.module("labels", self)
        with pyro.plate("data"):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), 2), xs.new_ones(len(xs), 2)).to_event(1))
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(len(xs), 3) / 3), obs=ys)
            shape = torch.broadcast_shapes(zs.shape[:-1], ys.shape[:-1])
            both = torch.cat([zs.expand(*shape, 2), ys.expand(*shape, 3)], -1)
            loc = torch.sigmoid(self.decode(both))
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(torch.softmax(self.classify(xs), -1)))
            shape = torch.broadcast_shapes(xs.shape[:-1], ys.shape[:-1])
            loc, scale = self.encode(torch.cat([xs.expand(*shape, D), ys.expand(*shape, 3)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    def model_classify(self, xs, ys=None):
        pyro.module("labels", self)
        with pyro.plate("data"):
            if ys is not None:
                with poutine.scale(scale=5.0):
                    pyro.sample("y_aux", dist.OneHotCategorical(torch.softmax(self.classify(xs), -1)), obs=ys)

    def guide_classify(self, xs, ys=None):
        pass


def labels():
    made, x, y = Labels(), binary(), torch.eye(3)[torch.randint(3, (N,))]
    guide, elbo = config_enumerate(made.guide, "parallel", expand=True), TraceEnum_ELBO(max_plate_nesting=1)
    elbo.strict_enumeration_warning = False

    def with_classifier(model, guide, *batch):
        aux = Trace_ELBO().differentiable_loss(made.model_classify, made.guide_classify, *batch)
        return elbo.differentiable_loss(model, guide, *batch) + aux

    steps = [((x,), {}), ((x, y), {})]
    return Case(made.model, guide, steps, elbo, (x, y), ppvae.Pair(made.model, guide), with_classifier)


class Quadrants(nn.Module):
    """As cvae: some elements of an image are given as −1 where they are to be generated, and are picked by that."""

    def __init__(self):
        super().__init__()
        self.prior, self.encode, self.decode = nn.Linear(D, 4), nn.Linear(2 * D, 4), nn.Linear(2, D)

    def model(self, xs, ys=None):
        pyro.module("quadrants", self)
        with pyro.plate("data"):
            with torch.no_grad():
                guess = xs.clone()
                guess[xs == -1] = 0.5
            loc, scale = self.prior(guess).chunk(2, -1)
            zs = pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))
            probs = torch.sigmoid(self.decode(zs))
            missing = (xs == -1).view(-1, D)
            picked, seen = probs[missing].view(len(xs), -1), ys[xs == -1].view(len(xs), -1)
            pyro.sample("y", dist.Bernoulli(picked, validate_args=False).to_event(1), obs=seen)

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            loc, scale = self.encode(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def quadrants():
    made, y = Quadrants(), binary()
    x = torch.where(torch.arange(D) < D // 2, y, -1.0)
    return Case(made.model, made.guide, [((x, y), {})], Trace_ELBO(), (x, y), made)


class Chain(nn.Module):
    """As dmm: a latent at every step of series of many lengths, masked, annealed by a number among the arguments."""

    def __init__(self):
        super().__init__()
        self.trans, self.emit = nn.Linear(2, 4), nn.Linear(2, D)
        self.rnn, self.combine = nn.RNN(D, 4, batch_first=True), nn.Linear(2 + 4, 4)
        self.z_0 = nn.Parameter(torch.zeros(2))

    def model(self, x, lengths, annealing=1.0):
        pyro.module("chain", self)
        z = self.z_0.expand(len(x), 2)
        with pyro.plate("series", len(x)):
            for t in pyro.markov(range(int(lengths.max()))):
                mask = (t < lengths)[:, None]
                loc, scale = self.trans(z).chunk(2, -1)
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, F.softplus(scale)).mask(mask).to_event(1))
                probs = torch.sigmoid(self.emit(z))
                pyro.sample(f"x_{t}", dist.Bernoulli(probs).mask(mask).to_event(1), obs=x[:, t])

    def guide(self, x, lengths, annealing=1.0):
        pyro.module("chain", self)
        hidden, _ = self.rnn(x)
        z = self.z_0.expand(len(x), 2)
        with pyro.plate("series", len(x)):
            for t in pyro.markov(range(int(lengths.max()))):
                mask = (t < lengths)[:, None]
                loc, scale = self.combine(torch.cat([z, hidden[:, t]], -1)).chunk(2, -1)
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, F.softplus(scale)).mask(mask).to_event(1))


def chain():
    made, lengths = Chain(), torch.arange(1, 5).repeat(N // 4)
    x = binary(N * 4).view(N, 4, D)
    steps = [((x, lengths, factor), {}) for factor in (0.2, 0.6, 1.0)]
    return Case(made.model, made.guide, steps, Trace_ELBO(), (x, lengths), made)


class Cells(nn.Module):
    """As scanvi: batch norm, a `pyro.param` beside the networks, a scaled plate, labels summed over, a factor."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.classify, self.decode = nn.Linear(2, 3), nn.Linear(2 + 3, D)

    def model(self, x, y=None):
        pyro.module("cells", self)
        rate = pyro.param("dispersion", 2.0 * x.new_ones(D), constraint=constraints.positive)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1 / len(x)):
            z = pyro.sample("z", dist.Normal(0, x.new_ones(2)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(3)), obs=y)
            shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
            mean = self.decode(torch.cat([z.expand(*shape, 2), y.expand(*shape, 3)], -1)).exp()
            pyro.sample("x", dist.NegativeBinomial(rate, logits=(mean / rate).log()).to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("cells", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1 / len(x)):
            loc, scale = self.encode(x.log1p()).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, F.softplus(scale)).to_event(1))
            labels = dist.OneHotCategorical(logits=self.classify(z))
            if y is None:
                pyro.sample("y", labels)
            else:
                pyro.factor("classification", -0.1 * labels.log_prob(y), has_rsample=False)


def cells():
    made, x, y = Cells(), torch.poisson(3 * torch.rand(N, D)), torch.eye(3)[torch.randint(3, (N,))]
    guide, elbo = (
        config_enumerate(made.guide, "parallel", expand=True),
        TraceEnum_ELBO(strict_enumeration_warning=False),
    )
    steps = [((x,), {}), ((x, y), {})]  # it guesses its plate nesting
    return Case(made.model, guide, steps, elbo, (x,), ppvae.Pair(made.model, guide))


class Topics(nn.Module):
    """As prodlda: a number that Python reads from the minibatch, batch norm without parameters, dropout."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(D, 4), nn.Dropout(0.2), nn.BatchNorm1d(4, affine=False))
        self.decode = nn.Sequential(nn.Dropout(0.2), nn.Linear(2, D, bias=False), nn.BatchNorm1d(D, affine=False))

    def model(self, docs):
        pyro.module("decode", self.decode)
        with pyro.plate("documents", docs.shape[0]):
            zeros = docs.new_zeros((docs.shape[0], 2))
            topics = pyro.sample("topics", dist.Normal(zeros, zeros + 1).to_event(1)).softmax(-1)
            total_count = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total_count, F.softmax(self.decode(topics), 1)), obs=docs)

    def guide(self, docs):
        pyro.module("encode", self.encode)
        with pyro.plate("documents", docs.shape[0]):
            loc, scale = self.encode(docs).chunk(2, -1)
            pyro.sample("topics", dist.Normal(loc, (scale / 2).exp()).to_event(1))


def topics():
    made, x = Topics(), torch.poisson(2 * torch.rand(N, D))
    return Case(made.model, made.guide, [((x,), {})], TraceMeanField_ELBO(), (x,), made)


class Scenes(nn.Module):
    """As air: the subsample is drawn in the guide, whether there is an object is discrete, with a baseline; masked."""

    def __init__(self):
        super().__init__()
        self.predict, self.encode, self.baseline = nn.Linear(D + 1, 1), nn.Linear(D, 2), nn.Linear(D, 1)
        self.decode = nn.Linear(1, D)

    def model(self, x, batch_size, prior):
        pyro.module("decode", self.decode)
        with pyro.plate("data", len(x)) as index:
            batch, mean, present = x[index], 0.0, x.new_ones(len(index), 1)
            for t in range(2):
                present = pyro.sample(f"present_{t}", dist.Bernoulli(prior(t) * present).to_event(1))
                what = pyro.sample(f"what_{t}", dist.Normal(torch.zeros_like(present), 1.0).mask(present).to_event(1))
                mean = mean + present * self.decode(what)
            pyro.sample("obs", dist.Normal(mean, 0.3 * torch.ones_like(batch)).to_event(1), obs=batch)

    def guide(self, x, batch_size, prior):
        for name in ("predict", "encode", "baseline"):
            pyro.module(name, getattr(self, name))
        with pyro.plate("data", len(x), subsample_size=batch_size) as index:
            batch, present = x[index], x.new_ones(len(index), 1)
            for t in range(2):
                p = torch.sigmoid(self.predict(torch.cat([batch, present], -1))) * present
                value = (self.baseline(batch) * present).squeeze(-1)
                infer = {"baseline": {"baseline_value": value}}
                present = pyro.sample(f"present_{t}", dist.Bernoulli(p).to_event(1), infer=infer)
                loc, scale = self.encode(batch).chunk(2, -1)
                pyro.sample(f"what_{t}", dist.Normal(loc, scale.exp()).mask(present).to_event(1))


def scenes():
    made, x, prior = Scenes(), torch.randn(N, D), [0.9, 0.4].__getitem__
    steps = [((x,), {"batch_size": 8, "prior": prior})]
    pair = ppvae.Pair(lambda x: made.model(x, len(x), prior), lambda x: made.guide(x, len(x), prior), [made])
    return Case(made.model, made.guide, steps, TraceGraph_ELBO(), (x,), pair, TraceGraph_ELBO())


CASES = [labels, quadrants, chain, cells, topics, scenes]


def made(make):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return make()


def trained(name):
    """Whether it is a parameter: no statistics of a batch norm, which may stay as they are."""
    return "running" not in name and "num_batches" not in name


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_steps_are_pyros(make):
    found = []
    for kind in (SVI, ppvae.SVI):
        case = made(make)
        svi = kind(case.model, case.guide, pyro.optim.Adam({"lr": 0.01}), case.elbo)
        found.append(torch.tensor([svi.step(*args, **kwargs) for args, kwargs in 3 * case.steps]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::ppvae.evaluate.ParetoWarning")
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_fitted_scored_saved_and_loaded(make, tmp_path):
    case = made(make)
    data = case.data if len(case.data) > 1 else case.data[0]
    before = {name: value.clone() for name, value in case.pair.state_dict().items()}
    ppvae.fit(case.pair, data, loss=case.fit_loss, epochs=3, lr=0.02, batch_size=12, progress=False)
    assert all(not torch.equal(value, case.pair.state_dict()[name]) for name, value in before.items() if trained(name))
    estimate = ppvae.log_marginal(case.pair, *case.data, num_samples=200)
    elbo = ppvae.elbo(case.pair, *case.data, num_samples=200)
    assert bool((elbo.values < estimate.values + 4 * elbo.std_error).all())
    other = made(make)
    ppvae.load(other.pair, ppvae.save(case.pair, tmp_path / "pair.safetensors"))
    again = ppvae.log_marginal(other.pair, *case.data, num_samples=200)
    assert torch.equal(again.values, estimate.values)
