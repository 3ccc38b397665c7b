"""ELBOs that users derive from Pyro's: the method that is theirs is the one that runs, on the object that is theirs."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate

from ppvae.infer import SVI
from ppvae.objectives import Objective

X = torch.linspace(-1.0, 3.0, 9)
STEPS = 8


def model(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def losses(svi_class, elbo, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    chosen = config_enumerate(guide) if isinstance(elbo, TraceEnum_ELBO) else guide
    svi = svi_class(model, chosen, pyro.optim.Adam({"lr": 0.01}), elbo, **options)
    found = [svi.step(X) for _ in range(STEPS)]
    return [*found, svi.evaluate_loss(X)]


def halved(base):
    """An ELBO that does what Pyro's SVI calls in its own way, and counts."""

    class Halved(base):
        steps = evaluations = 0

        def loss_and_grads(self, *args, **kwargs):
            self.steps += 1
            return 0.5 * super().loss_and_grads(*args, **kwargs)

        def loss(self, *args, **kwargs):
            self.evaluations += 1
            return 0.25 * super().loss(*args, **kwargs)

    return Halved()


@pytest.mark.parametrize("base", [Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO])
def test_methods_that_pyro_calls_are_called(base):
    theirs, ours = halved(base), halved(base)
    expected = losses(pyro.infer.SVI, theirs)
    torch.testing.assert_close(losses(SVI, ours), expected, rtol=1e-5, atol=1e-5)
    assert (ours.steps, ours.evaluations) == (theirs.steps, theirs.evaluations) == (STEPS, 1)


class WarmUp(Trace_ELBO):
    """Counts its steps, keeps its last loss, and goes by the count later on."""

    steps = 0

    def differentiable_loss(self, model, guide, *args):
        self.steps += 1
        self.last = Trace_ELBO().differentiable_loss(model, guide, *args)
        return self.last * (0.1 if self.steps < STEPS else 1.0)


class OurWarmUp(WarmUp, Objective):
    """The same, an objective of ours."""


def test_what_an_elbo_sets_is_set_on_it():
    elbo = WarmUp()
    found = losses(SVI, elbo, compile=False)
    assert elbo.steps == STEPS
    assert found[STEPS - 1] == pytest.approx(float(elbo.last.detach()))


class Around(Objective):
    """An objective that is made of another."""

    def __init__(self):
        super().__init__()
        self.parts = (WarmUp(),)

    @property
    def steps(self):
        return self.parts[0].steps

    def differentiable_loss(self, *args):
        return self.parts[0].differentiable_loss(*args)


@pytest.mark.parametrize("kind", [WarmUp, OurWarmUp, Around])
def test_a_graph_that_would_not_count_is_not_compiled(kind):
    eager, compiled = kind(), kind()
    expected = losses(SVI, eager, compile=False)
    with pytest.warns(UserWarning, match="the objective sets its attribute 'steps' at every run"):
        found = losses(SVI, compiled, compile=True)
    assert found == expected
    assert compiled.steps == eager.steps


def test_an_elbo_that_sets_nothing_is_compiled():
    class Weighted(Trace_ELBO):
        def loss_and_grads(self, *args, **kwargs):
            return 0.5 * super().loss_and_grads(*args, **kwargs)

    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Weighted(), compile=True)
    for _ in range(3):
        svi.step(X)
    assert svi._compiled.num_graphs == 1
