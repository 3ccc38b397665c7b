"""What users of `pyro.infer.SVI` call: its arguments, its methods, and steps with nothing to train."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    EmpiricalMarginal,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    TracePredictive,
)

from ppvae.infer import SVI
from ppvae.objectives.step_terms import StepTerms

X = torch.linspace(-1.0, 3.0, 9)
BOTH = [pyro.infer.SVI, SVI]


def model(x=None, scale=1.0):
    m = pyro.sample("m", dist.Normal(pyro.param("prior", torch.tensor(0.0)), 10.0))
    with pyro.plate("data", 9):
        return pyro.sample("x", dist.Normal(m, scale), obs=x)


def guide(x=None, scale=1.0):
    pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))


def adam():
    return pyro.optim.Adam({"lr": 0.1})


def by_each(run):
    """What `run` gives with Pyro's SVI and with ours, from the same seed and an empty store."""
    results = []
    for svi_class in BOTH:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        results.append(run(svi_class))
    return results


def check_equal(run):
    theirs, ours = by_each(run)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_it_is_an_svi_of_pyro():
    svi = SVI(model, guide, adam(), Trace_ELBO())
    assert isinstance(svi, pyro.infer.SVI)
    with pytest.raises(AttributeError):
        svi.loss = Trace_ELBO()


@pytest.mark.parametrize("loss", [Trace_ELBO(), Trace_ELBO().differentiable_loss], ids=["elbo", "function"])
def test_loss_and_loss_and_grads_are_functions(loss):
    def run(svi_class):
        svi = svi_class(model, guide, adam(), loss)
        losses = [svi.loss(model, guide, X), svi.loss_and_grads(model, guide, X, scale=2.0)]
        return losses + [pyro.param(name).unconstrained().grad for name in ("prior", "loc")]

    check_equal(run)


@pytest.mark.parametrize("compile", [False, True])
def test_a_loss_with_its_gradient_given(compile):
    def run(svi_class):
        elbo = Trace_ELBO(num_particles=2)
        options = {"compile": compile} if svi_class is SVI else {}
        svi = svi_class(model, guide, adam(), elbo.loss, loss_and_grads=elbo.loss_and_grads, **options)
        return [*(svi.step(X) for _ in range(4)), svi.evaluate_loss(X), *pyro.get_param_store().values()]

    check_equal(run)


def test_a_loss_without_gradient_is_a_step_that_changes_nothing():
    check_equal(lambda svi_class: svi_class(model, guide, adam(), Trace_ELBO().loss).step(X))


@pytest.mark.parametrize("compile", [False, True])
def test_several_losses(compile):
    def run(svi_class):
        options = {"compile": compile} if svi_class is SVI else {}
        svi = svi_class(model, guide, adam(), ReweightedWakeSleep(num_particles=2), **options)
        steps = [svi.step(X) for _ in range(4)]
        assert all(isinstance(loss, float) for losses in steps for loss in losses)
        return [*steps, tuple(svi.evaluate_loss(X))]

    check_equal(run)


def test_several_losses_have_a_column_each():
    terms = SVI(model, guide, adam(), ReweightedWakeSleep(num_particles=2)).update(X)
    named = terms.named()
    assert float(named["loss"]) == pytest.approx(float(named["loss_1"] + named["loss_2"]), rel=1e-6)
    assert StepTerms.of(named) == terms
    with pytest.raises(ValueError, match="'loss_7', which is a column of the history already"):
        StepTerms(X[0], None, {}, {"loss_7": X[0]}).named()


@pytest.mark.parametrize(
    "elbo",
    [Trace_ELBO, TraceMeanField_ELBO, lambda: TraceEnum_ELBO(max_plate_nesting=0), lambda: RenyiELBO(num_particles=2)],
    ids=["Trace", "MeanField", "Enum", "Renyi"],
)
@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["zero", "constant"])
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites configured for enumeration")
def test_a_pair_without_parameters_takes_a_step(elbo, scale):
    def fixed():
        pyro.sample("z", dist.Normal(0.0, scale))

    def run(svi_class):
        svi = svi_class(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), fixed, adam(), elbo())
        return [svi.step(), svi.step(), svi.evaluate_loss()]

    check_equal(run)


def test_parameters_that_come_later_are_trained():
    def late(x=None, scale=1.0):
        loc = pyro.param("loc", torch.tensor(0.0)) if scale != 1.0 else torch.tensor(0.0)
        pyro.sample("m", dist.Normal(loc, 0.1))

    def fixed(x=None, scale=1.0):
        pyro.sample("m", dist.Normal(0.0, 10.0))

    def run(svi_class):
        svi = svi_class(fixed, late, adam(), Trace_ELBO())
        return [svi.step(X), svi.step(X, scale=2.0), svi.step(X, scale=2.0), pyro.param("loc").item()]

    check_equal(run)


@pytest.mark.filterwarnings("ignore:The `:FutureWarning", "ignore:The `TracePredictive:FutureWarning")
def test_run_draws_traces_of_the_posterior():
    def run(svi_class):
        svi = svi_class(model, guide, adam(), Trace_ELBO(), num_samples=20, num_steps=5)
        assert svi.run(X) is svi
        assert len(svi.exec_traces) == 20
        predicted = TracePredictive(model, svi, num_samples=3).run().marginal().empirical["_RETURN"]
        return [pyro.param("loc").item(), EmpiricalMarginal(svi, "m").mean, predicted.mean]

    check_equal(run)


@pytest.mark.parametrize("bad", ["datum", "parameter"])
@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO])
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_a_compiled_step_is_as_loud_about_nan_as_pyros(loss, bad):
    """It warns where the loss is NaN, and the step after it raises what Pyro's does, with the site's name."""

    def run(svi_class, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = svi_class(model, guide, pyro.optim.SGD({"lr": 1e-3}), loss(max_plate_nesting=1), **options)
        for _ in range(3):
            svi.step(X)
        if bad == "parameter":
            pyro.param("loc").data.fill_(torch.nan)
        said = []
        for batch in (torch.where(X[2] == X, torch.inf, X) if bad == "datum" else X, X, X):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    svi.step(batch)
                except ValueError as error:
                    said.append(str(error).partition("\n")[0])
                    break
            said.append(any("Encountered NaN" in str(warning.message) for warning in caught))
        return said

    theirs, compiled = run(pyro.infer.SVI), run(SVI, compile=True)
    assert isinstance(theirs[-1], str), theirs
    assert compiled[-1] == theirs[-1]
