"""A Delta that makes latents of draws holds the change of volume, or is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoNormal
from torch.distributions import biject_to

import ppvae
from ppvae.evaluate import log_evidence

AUXILIARY = {"is_auxiliary": True}
X = torch.tensor([0.5, -1.0, 2.0])
PRIORS = {
    "normal": dist.Normal(torch.zeros(3), 1.0).to_event(1),
    "gamma": dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1),
    "simplex": dist.Dirichlet(torch.full((3,), 2.0)),
    "interval": dist.Uniform(torch.zeros(3), 2.0).to_event(1),
}


def pair_of(family, log_density, mix):
    """z = t(A u), with what `log_density` makes of the change of volume at the Delta, and p(x) by many draws."""
    prior = PRIORS[family]
    transform = biject_to(prior.support)
    k = transform.inverse_shape(prior.event_shape)[0]
    a = torch.eye(k) + mix * torch.ones(k, k).tril()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-1) + z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(k), 1.0).to_event(1), infer=AUXILIARY)
            y = u @ a.T
            z = transform(y)
            volume = transform.log_abs_det_jacobian(y, z)
            volume = volume.reshape(*volume.shape[: u.dim() - 1], -1).sum(-1) + torch.linalg.slogdet(a).logabsdet
            pyro.sample("z", dist.Delta(z, log_density=log_density(volume), event_dim=1))

    return ppvae.Pair(model, guide)


@pytest.mark.parametrize("mix", [0.0, 0.5])
@pytest.mark.parametrize("family", PRIORS)
def test_the_change_of_volume_gives_the_exact_value(family, mix):
    pair = pair_of(family, lambda volume: -volume, mix)
    estimate = ppvae.log_marginal(pair, X, num_samples=20_000)
    z = PRIORS[family].sample((400_000,))
    p = dist.Normal(z.sum(-1) + z[..., 0], 1.0).log_prob(X[:, None]).double()
    exact = p.logsumexp(-1) - math.log(len(z))
    error = (estimate.std_error.square() + ((p - exact[:, None]).exp().var(-1) / len(z))).sqrt()
    assert ((estimate.values - exact).abs() <= 5 * error).all()


WRONG = {
    "none": torch.zeros_like,
    "sign": lambda volume: volume,
    "half": lambda volume: -0.5 * volume,
    "more": lambda volume: -volume - 0.1,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("family", PRIORS)
def test_any_other_density_is_refused(family, wrong):
    for run in (ppvae.log_marginal, ppvae.elbo):
        with pytest.raises(ValueError, match=r"makes the latents \['z'\] of \['u'\] by a Delta whose log_density"):
            run(pair_of(family, WRONG[wrong], 0.5), X)


def test_draws_that_make_no_latent_are_not_taken_for_its_density():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(0.0, 1.0), infer=AUXILIARY)
            pyro.sample("z", dist.Delta(torch.randn(x.shape)))

    with pytest.raises(ValueError, match="change of volume"):
        ppvae.log_marginal(ppvae.Pair(model, guide), X)


def test_training_leaves_the_check_to_the_estimators_and_does_it_first_where_one_is_asked_for():
    pair = pair_of("gamma", torch.zeros_like, 0.5)
    reached = []
    with pytest.raises(ValueError, match="change of volume"):
        ppvae.fit(pair, (X,), valid=(X,), epochs=1, progress=False, callbacks=[lambda *_: reached.append(1)])
    assert not reached


def location(x):
    b = pyro.sample("b", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoLowRankMultivariateNormal])
def test_autoguides_of_shared_latents(kind):
    guide = kind(location, init_scale=1.0)
    evidence = log_evidence(ppvae.Pair(location, guide), X, num_samples=400)
    b = dist.LogNormal(torch.zeros(2), 1.0).sample((400_000,)).sum(-1)
    log_p = dist.Normal(b[:, None], 1.0).log_prob(X).sum(-1).double()
    exact = log_p.logsumexp(0) - math.log(len(b))
    error = (evidence.std_error**2 + float((log_p - exact).exp().var()) / len(b)) ** 0.5
    assert abs(evidence.value - float(exact)) < 5 * error


def test_what_has_no_density_over_shared_latents_is_refused():
    def by_hand(x):
        u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer=AUXILIARY)
        pyro.sample("b", dist.Delta(u.exp(), event_dim=1))

    def mixture(x):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=AUXILIARY)
        pyro.sample("b", dist.LogNormal(u.expand(2), 1.0).to_event(1))

    def marked(x):
        u = pyro.sample("u", dist.Bernoulli(0.5), infer={**AUXILIARY, "enumerate": "parallel"})
        pyro.sample("b", dist.LogNormal(u.unsqueeze(-1).expand(*u.shape, 2), 1.0).to_event(1))

    for guide, said in ((by_hand, "change of volume"), (mixture, r"draws \['u'\]"), (marked, r"draws \['u'\]")):
        with pytest.raises(ValueError, match=said):
            log_evidence(ppvae.Pair(location, guide), X)
