"""Where no KL term is weighted, every penalized objective is the ELBO, whatever the guide: the same draws, one loss."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from ppvae.objectives import BalancedELBO, CapacityELBO, ConstrainedELBO, FreeBitsELBO

X = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 0.5
NEUTRAL = {
    "balanced": partial(BalancedELBO, {}),
    "free bits": partial(FreeBitsELBO, 0.0),
    "capacity": partial(CapacityELBO, 0.0, gamma=1.0),
    "constrained": partial(ConstrainedELBO, 0.0),
}
HALF = torch.arange(40) % 2 == 0


def positive(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(5.0, 0.1))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def two_positive(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Gamma(5.0, 0.1))
        b = pyro.sample("b", dist.Uniform(0.0, 900.0))
        pyro.sample("x", dist.Normal(a + b, 0.7), obs=x)


def real(x, q=None, masks=(None, None)):
    mask = masks[0] if q is None else masks[1]
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=True if mask is None else mask):
            z = pyro.sample("z", dist.Normal(torch.full((2,), 9.0), 1.0).to_event(1) if q is None else q(x))
        if q is None:
            pyro.sample("x", dist.Normal(z.sum(-1), 0.7), obs=x)


def normal(x):
    return dist.Normal(torch.stack([x, -x], -1), 0.4).to_event(1)


def flow(x):
    return dist.TransformedDistribution(normal(x), [dist.transforms.AffineTransform(1.0, torch.tensor([0.5, 2.0]))])


def of_dims(x):
    """Each dimension transformed alone."""
    base = dist.Normal(torch.stack([x, -x], -1), 0.4)
    return dist.TransformedDistribution(base, [dist.transforms.TanhTransform()]).to_event(1)


def point(x):
    return dist.Delta(torch.stack([x, -x], -1), log_density=x.unsqueeze(-1) * torch.tensor([1.0, 2.0])).to_event(1)


class Twice(dist.Normal):
    """A density that is not the one whose KL torch knows."""

    def log_prob(self, value):
        return 2.0 * super().log_prob(value)


def twice(x):
    return Twice(torch.stack([x, -x], -1), 0.4).to_event(1)


def by_hand(x):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(x.log(), 0.4), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u.exp(), log_density=-u))


def two_by_hand(x):
    """One draw of all, in one event outside the plate, as Pyro's autoguides have it."""
    loc = torch.cat([x.log(), x])
    u = pyro.sample("u", dist.Normal(loc, 0.4).to_event(1), infer={"is_auxiliary": True})
    a, b = u.exp().split(len(x))
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Delta(a, log_density=-u[: len(x)]))
        pyro.sample("b", dist.Delta(b, log_density=-u[len(x) :]))


def in_a_plate(x):
    """A change of volume in a plate inside, whose elements are those of the latent's event."""
    with pyro.plate("data", len(x)):
        with pyro.plate("inside", 2, dim=-2):
            u = pyro.sample("u", dist.Normal(x, 0.4), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(2.0 * u.T, log_density=torch.tensor(-0.7), event_dim=1))


def hierarchy(x, q=False, backwards=False):
    with pyro.plate("data", len(x)):
        if not q:
            z2 = pyro.sample("z2", dist.LogNormal(3.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 0.5))
            pyro.sample("x", dist.Normal(z1, 0.7), obs=x)
        elif backwards:
            z1 = pyro.sample("z1", dist.Normal(x, 0.3))
            pyro.sample("z2", dist.LogNormal(z1, 0.2))
        else:
            z2 = pyro.sample("z2", dist.LogNormal(x, 0.2))
            pyro.sample("z1", dist.Normal(z2 + x, 0.3))


def relaxed(x, q=None):
    with pyro.plate("data", len(x)):
        logits = torch.stack([x, 0.1 * x, -x], -1)
        y = pyro.sample("y", dist.OneHotCategorical(logits=torch.tensor([0.0, 0.0, 3.0])) if q is None else q(logits))
        if q is None:
            pyro.sample("x", dist.Normal(y[..., 0], 0.7), obs=x)


def straight(logits):
    return dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), logits=logits)


def concrete(x, q=False):
    with pyro.plate("data", len(x)):
        temperature = torch.tensor(0.6 if q else 0.8)
        logits = torch.stack([x, -x], -1) if q else torch.tensor([3.0, -3.0])
        y = pyro.sample("y", dist.RelaxedBernoulli(temperature, logits=logits).to_event(1))
        if not q:
            pyro.sample("x", dist.Normal(y.sum(-1), 0.7), obs=x)


def auto(kind, model, **options):
    pyro.set_rng_seed(0)
    guide = kind(model, **options)
    guide(X)
    return model, guide


def with_mask(in_model, in_guide, q=flow):
    masks = in_model, in_guide
    return partial(real, masks=masks), partial(real, q=q, masks=masks)


PAIRS = {  # the KL of none has a closed form, or it is that of a point
    "flow": lambda: (real, partial(real, q=flow)),
    "flow of each dimension": lambda: (real, partial(real, q=of_dims)),
    "point with a density": lambda: (real, partial(real, q=point)),
    "a class of the user's": lambda: (real, partial(real, q=twice)),
    "by hand": lambda: (positive, by_hand),
    "two by hand": lambda: (two_positive, two_by_hand),
    "a plate inside": lambda: (real, in_a_plate),
    "masks": lambda: with_mask(HALF, HALF),
    "mask of the model alone": lambda: with_mask(HALF, None),
    "mask of the guide alone": lambda: with_mask(None, HALF),
    "other masks": lambda: with_mask(HALF, torch.arange(40) < 30, point),
    "straight through": lambda: (relaxed, partial(relaxed, q=straight)),
    "concrete": lambda: (concrete, partial(concrete, q=True)),
    "AutoDelta": lambda: auto(AutoDelta, positive),
    "AutoDelta of two": lambda: auto(AutoDelta, two_positive),
    "AutoNormal": lambda: auto(AutoNormal, positive),
    "AutoNormal of two": lambda: auto(AutoNormal, two_positive),
    "AutoDiagonalNormal": lambda: auto(AutoDiagonalNormal, positive, init_scale=0.3),
    "AutoDiagonalNormal of two": lambda: auto(AutoDiagonalNormal, two_positive, init_scale=0.3),
    "AutoMultivariateNormal": lambda: auto(AutoMultivariateNormal, positive),
    "AutoLowRankMultivariateNormal": lambda: auto(AutoLowRankMultivariateNormal, two_positive),
    "AutoIAFNormal": lambda: auto(AutoIAFNormal, two_positive, hidden_dim=[90]),
}


def loss_of(objective, model, guide, seed=1):
    pyro.set_rng_seed(seed)
    return float(objective.differentiable_loss(model, guide, X).detach())


@pytest.mark.filterwarnings("ignore:Found plate statements in guide but not model")
@pytest.mark.parametrize("objective", NEUTRAL)
@pytest.mark.parametrize("name", PAIRS)
def test_it_is_the_elbo_on_the_same_draws(name, objective):
    model, guide = PAIRS[name]()
    expected = loss_of(Trace_ELBO(), model, guide)
    assert loss_of(NEUTRAL[objective](), model, guide) == pytest.approx(expected, rel=1e-5)


EXACT = {  # where torch knows the KL, the number is not that of the draws but what it is on average over many
    "normal": lambda: (real, partial(real, q=normal)),
    "hierarchy": lambda: (hierarchy, partial(hierarchy, q=True)),
    "hierarchy backwards": lambda: (hierarchy, partial(hierarchy, q=True, backwards=True)),
    "masks": lambda: with_mask(HALF, HALF, normal),
    "mask of the model alone": lambda: with_mask(HALF, None, normal),
    "other masks": lambda: with_mask(HALF, torch.arange(40) < 30, normal),
    "masked distributions": lambda: (real, partial(real, q=lambda x: normal(x).mask(HALF))),
    "masked dimensions": lambda: (real, partial(real, q=masked_dimension)),
}


def masked_dimension(x):
    return dist.Normal(torch.stack([x, -x], -1), 0.4).mask(torch.tensor([True, False])).to_event(1)


@pytest.mark.parametrize("objective", NEUTRAL)
@pytest.mark.parametrize("name", EXACT)
def test_where_the_kl_is_known_it_is_the_elbo_on_average(name, objective):
    model, guide = EXACT[name]()
    with torch.no_grad():
        losses = [
            torch.tensor([loss_of(make(), model, guide, seed) for seed in range(30)])
            for make in (Trace_ELBO, NEUTRAL[objective])
        ]
    error = float((losses[0].var() + losses[1].var()).div(30).sqrt())
    assert abs(float(losses[0].mean() - losses[1].mean())) < 4.5 * error
