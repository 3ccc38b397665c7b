"""What Pyro's users do to values in the store that a step reads and does not train counts as it does in Pyro."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from ppvae.infer import SVI


def model(x):
    offset = pyro.param("offset", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(offset, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))


def detached(old, step):
    return old.detach() + 0.01 * step


def computed(old, step):
    """As a step of Newton's within a model gives: it depends on the value before."""
    return old.detach().requires_grad_() * 0.9 + 0.01 * step


def losses(svi_class, replaced, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    hidden = [poutine.block(f, hide=["offset"]) for f in (model, guide)]
    svi = svi_class(*hidden, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options)
    found = []
    for step in range(12):
        if step >= 4:
            store = pyro.get_param_store()
            store["offset"] = replaced(store["offset"], step)
        found.append(svi.step(torch.linspace(-1.0, 1.0, 5)))
    return found


@pytest.mark.parametrize(
    ("replaced", "why"), [(detached, "two runs of the pair"), (computed, "'offset' has a gradient function of its own")]
)
def test_a_hidden_value_that_is_replaced_between_steps(replaced, why):
    with pytest.warns(UserWarning, match=f"not compiled, runs eagerly: .*{why}"):
        ours = losses(SVI, replaced, compile=True)
    assert ours == pytest.approx(losses(pyro.infer.SVI, replaced), rel=1e-5)


def test_a_constant_that_is_replaced_gets_a_graph_of_its_own():
    def run(svi_class, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = svi_class(without, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options)
        found = []
        for step in range(12):
            found.append(svi.step(torch.linspace(-1.0, 1.0, 5)))
            if step % 4 == 3:
                pyro.get_param_store()._params["offset"] = torch.tensor(0.1 * step)
        return found, svi

    def without(x):
        offset = pyro.param("offset", torch.tensor(0.0)).detach()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(offset, 1.0)), 1.0), obs=x)

    (theirs, _), (ours, svi) = run(pyro.infer.SVI), run(SVI, compile=True)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert svi._compiled.num_graphs
