"""What a caller has around it does not reach into a pair, and what runs in two threads runs one after the other."""

import contextlib
import threading

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

import ppvae
from ppvae.evaluate import Annealed, inference_gap, latent_report, posterior_predictive
from ppvae.isolation import isolated
from ppvae.models import PPCA
from tests.infer.pairs import ADAM, binary, small_vae, state

X = binary(20)
CONTEXTS = {
    "data plate": lambda: pyro.plate("data", 20),
    "outer plate": lambda: pyro.plate("outer", 3, dim=-2),
    "mask": lambda: poutine.mask(mask=torch.tensor(False)),
    "trace": lambda: poutine.trace(),
    "condition": lambda: poutine.condition(data={"z": torch.zeros(20, 2)}),
    "scale": lambda: poutine.scale(scale=0.1),
    "seed": lambda: poutine.seed(rng_seed=3),
    "block": lambda: poutine.block(),
    "kl weight": lambda: ppvae.KLWeight(0.1),
    "inference mode": lambda: torch.inference_mode(),
}
ESTIMATES = {
    "elbo": lambda pair: ppvae.elbo(pair, X, num_samples=5).values,
    "log_marginal": lambda pair: ppvae.log_marginal(pair, X, num_samples=20).values,
    "annealed": lambda pair: ppvae.log_marginal(pair, X, method=Annealed(num_chains=2, num_temperatures=5)).values,
    "posterior_predictive": lambda pair: posterior_predictive(pair, X, num_samples=3).predictive["x"],
    "latent_report": lambda pair: latent_report(pair, X, num_samples=5).kl,
    "inference_gap": lambda pair: inference_gap(pair, X, num_samples=20, num_steps=3).amortization,
}


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_handlers_of_a_caller_change_no_estimate(estimate):
    pair = small_vae()
    alone = ESTIMATES[estimate](pair)
    for name, context in CONTEXTS.items():
        with context():
            assert torch.equal(ESTIMATES[estimate](pair), alone), name


def test_handlers_come_back_as_they_were():
    with pyro.plate("outer", 3, dim=-1), poutine.trace() as trace:
        with contextlib.suppress(ZeroDivisionError), isolated():
            pyro.plate("inner", 2, dim=-1).__enter__()
            raise ZeroDivisionError
        pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
    assert trace.trace.nodes["z"]["value"].shape == (3,)
    assert isolated_stack() == []


def isolated_stack():
    return list(poutine.runtime._PYRO_STACK)


@pytest.mark.parametrize("context", [c for c in CONTEXTS if c not in ("inference mode", "seed")])
def test_fit_refuses_handlers_that_would_do_nothing(context):
    with CONTEXTS[context](), pytest.raises(RuntimeError, match=r"inside of the Pyro handlers \w+,"):
        ppvae.fit(small_vae(), X, epochs=1, progress=False)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_says_so(context):
    pair = small_vae()
    svi = ppvae.SVI(pair.model, pair.guide, ADAM, Trace_ELBO())
    with context(), pytest.raises(RuntimeError, match=f"fit trains by gradients.*torch.{context.__name__}"):
        ppvae.fit(pair, X, epochs=1, progress=False)
    with context(), pytest.raises(RuntimeError, match=r"SVI.step trains by gradients"):
        svi.step(X)


class Detached(PPCA):
    """A pair whose densities depend on no parameter."""

    def model(self, x):
        with torch.no_grad():
            super().model(x)

    def guide(self, x):
        with torch.no_grad():
            super().guide(x)


@pytest.mark.parametrize(
    ("pair", "loss"),
    [
        (PPCA(6, 2), lambda model, guide, x: torch.tensor(1.0)),
        (PPCA(6, 2), lambda model, guide, x: 2.0),
        (PPCA(6, 2), lambda model, guide, x: (torch.ones(2, requires_grad=True) ** 2).sum()),
        (Detached(6, 2), None),
        (Detached(6, 2), pyro.infer.TraceGraph_ELBO()),
    ],
    ids=["constant", "number", "other tensor", "detached", "detached, by loss_and_grads"],
)
def test_a_loss_that_reaches_no_parameter_is_refused_before_training(pair, loss):
    with pytest.raises(ValueError, match="depends on none of the parameters"):
        ppvae.fit(pair, X, loss=loss, epochs=1, progress=False)


def test_two_threads_train_as_they_would_alone():
    def trained(seed, pair):
        ppvae.fit(pair, X, epochs=4, batch_size=5, seed=seed, progress=False, compile=False)
        return state(pair), ppvae.elbo(pair, X, num_samples=3, seed=seed).values

    alone = {seed: trained(seed, small_vae(seed)) for seed in (1, 2, 3)}
    found = {}
    pairs = {seed: small_vae(seed) for seed in alone}
    threads = [threading.Thread(target=lambda s=s, p=p: found.update({s: trained(s, p)})) for s, p in pairs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, (weights, values) in alone.items():
        assert torch.equal(found[seed][1], values)
        assert all(torch.equal(found[seed][0][name], value) for name, value in weights.items())
