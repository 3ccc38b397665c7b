"""Every estimator and objective on random pairs whose log p(x), posterior and ELBO are known.

A few pairs in the default run, and `PPVAE_REFEREE` of them (300 by default) by `pytest -m referee`. Seeds are fixed,
so that a failure comes again. How often a right number would fail: means are held within 5 and single data within 6
standard errors, which of normal errors is 6e-7 and 2e-9 each, together below 1e-3 for 300 pairs. Weights are skewed and
standard errors estimated, which makes it more: a failure that goes with twice the draws was chance.
"""

import os

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import ppvae
from ppvae.objectives import CIWAE, IWAE, MIWAE, PIWAE, BalancedELBO, FreeBitsELBO
from tests.referee.case import Case
from tests.referee.cases import draw
from tests.referee.gaussians import Gaussian
from tests.reference import local_params

PAIRS = int(os.environ.get("PPVAE_REFEREE", "300"))


def pairs(*always: int) -> pytest.MarkDecorator:
    """All pairs, of which these belong to the default run."""
    seeds = [seed if seed in always else pytest.param(seed, marks=pytest.mark.referee) for seed in range(PAIRS)]
    return pytest.mark.parametrize("seed", seeds)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

S, REPEATS = 400, 12
"""Draws of an estimate, and estimates."""


def rounding(case: Case) -> float:
    """What float32 or float64 may cost, in nats."""
    return 2e-3 if next(case.pair.parameters()).dtype == torch.float32 else 1e-8


def estimates(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """p̂(x) / p(x), its standard errors and k̂ for several seeds, each (repeats, n)."""
    found = [ppvae.log_marginal(case.pair, *case.data, num_samples=S, seed=seed) for seed in range(REPEATS)]
    ratios = torch.stack([estimate.values - case.log_prob for estimate in found]).exp()
    return ratios, torch.stack([e.std_error for e in found]), torch.stack([e.pareto_k for e in found])


@pairs(0, 1, 2, 3, 4)
def test_log_p_is_unbiased_and_its_error_what_it_says(seed):
    case = draw(seed)
    ratios, errors, k = estimates(case)
    if case.exact:
        torch.testing.assert_close(ratios.log(), torch.zeros_like(ratios), atol=rounding(case), rtol=0.0)
        return
    variance = errors.square().mean(0) if case.spread is None else case.spread.expm1().clamp_min(0) / S
    if case.spread is None:
        variance = torch.maximum(variance, ratios.var(0))
    of_each = ratios.mean(0) - 1
    assert (of_each.abs() <= 6 * (variance / REPEATS).sqrt() + rounding(case)).all(), (of_each, variance)
    of_all = variance.sum().div(REPEATS).sqrt() / len(variance)
    assert of_each.mean().abs() <= 5 * of_all + rounding(case), (of_each.mean(), of_all)
    sure = (errors > 10 * rounding(case)) & ~(k > 0.4)
    if not case.rare and sure.sum() > 40:
        assert 0.4 < ((ratios - 1) / errors)[sure].square().mean() < 2.0


@pairs(0, 1, 2, 3, 4)
def test_elbo(seed):
    case = draw(seed)
    terms = ppvae.elbo(case.pair, *case.data, num_samples=S)
    error = (terms.std_error.square() + rounding(case) ** 2).sqrt()
    assert (terms.values - terms.reconstruction + sum(terms.kl.values())).abs().max() < rounding(case)
    if case.elbo is None:
        assert (terms.values <= case.log_prob + 6 * error).all()
        return
    missed = 0.05 if case.rare else 0.0
    off = terms.values - case.elbo
    assert (off.abs() <= 6 * error + missed).all(), (off, error)
    assert off.mean().abs() <= 5 * error.square().sum().sqrt() / len(error) + missed


@pairs(0, 1, 2, 3, 4)
def test_neither_chunks_nor_other_data_matter(seed):
    case = draw(seed)
    whole = ppvae.log_marginal(case.pair, *case.data, num_samples=S)
    chunked = ppvae.log_marginal(case.pair, *case.data, num_samples=S, batch_size=2)
    torch.testing.assert_close(chunked.values, whole.values, atol=rounding(case), rtol=0.0)
    others = tuple(torch.cat([x[:3], x[3:].flip(0)]) for x in case.data)
    beside = ppvae.log_marginal(case.pair, *others, num_samples=S)
    alone = ppvae.log_marginal(case.pair, *(x[:3] for x in case.data), num_samples=S)
    if case.aligned:
        torch.testing.assert_close(beside.values[:3], whole.values[:3], atol=rounding(case), rtol=0.0)
    missed = 0.1 if case.rare else rounding(case)
    for estimate in (beside, alone):
        error = (whole.std_error[:3].square() + estimate.std_error[:3].square()).sqrt()
        assert ((estimate.values[:3] - whole.values[:3]).abs() <= 6 * error + missed).all()


@pairs(1, 3)
def test_compiled_as_eager(seed):
    case = draw(seed)
    eager, compiled = (
        ppvae.log_marginal(case.pair, *case.data, num_samples=600, compile=compile) for compile in (False, True)
    )
    torch.testing.assert_close(compiled.values, eager.values, atol=rounding(case), rtol=0.0)
    if not case.reparameterized:
        return
    losses = []
    for compile in (False, True):
        run = ppvae.fit(
            draw(seed).pair, case.data, epochs=3, batch_size=7, lr=1e-3, compile=compile, progress=False, seed=seed
        )
        losses.append(torch.tensor([row["loss"] for row in run.history]))
    torch.testing.assert_close(*losses, atol=10 * rounding(case), rtol=1e-4)


class WithTerms(nn.Module):
    """A pair with terms of training alone, read from the first of its data."""

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.pair = pair

    def model(self, *args):
        self.pair.model(*args)
        with pyro.plate("terms", len(args[0]), dim=-1):
            ppvae.loss_term("of_model", of_data(args[0]))

    def guide(self, *args):
        self.pair.guide(*args)
        with pyro.plate("terms", len(args[0]), dim=-1):
            ppvae.loss_term("of_guide", 0.5 * of_data(args[0]))


def of_data(x: Tensor) -> Tensor:
    """A number for each datum."""
    return x.double().reshape(len(x), -1)[:, 0].clamp(-3, 3)


@pairs(0, 1)
def test_terms_of_training_alone_are_not_seen(seed):
    case = draw(seed)
    for estimate in (ppvae.log_marginal, ppvae.elbo):
        plain, with_terms = (estimate(p, *case.data, num_samples=50) for p in (case.pair, WithTerms(case.pair)))
        torch.testing.assert_close(with_terms.values, plain.values, atol=rounding(case), rtol=0.0)


def loss(objective, case: Case, pair: nn.Module, seed: int) -> float:
    """Of all data, with these random numbers."""
    pyro.set_rng_seed(seed)
    with local_params(pair):
        return float(objective.loss(pair.model, pair.guide, *case.data))


@pairs(0, 2, 3)
def test_neutral_objectives_are_the_elbo(seed):
    case = draw(seed)
    if not case.reparameterized:
        return
    pair, n = WithTerms(case.pair), len(case.log_prob)
    tolerance = 3 * n * rounding(case)
    elbo = loss(Trace_ELBO(), case, pair, 1)
    for objective in (IWAE(1), CIWAE(1, 0.0), MIWAE(1, 1), PIWAE(1, 1)):
        assert loss(objective, case, pair, 1) == pytest.approx(elbo, abs=tolerance), type(objective)
    balanced = BalancedELBO({})
    assert loss(FreeBitsELBO({}), case, pair, 1) == pytest.approx(loss(balanced, case, pair, 1), abs=tolerance)
    assert loss(FreeBitsELBO(0.0), case, pair, 1) >= loss(balanced, case, pair, 1) - tolerance
    scale = 2.5 if isinstance(case.pair, Gaussian) and case.pair.manner.scaled else 1.0
    terms = 1.5 * float(of_data(case.data[0]).sum())
    for objective, others in ((balanced, Trace_ELBO()), (CIWAE(3, 0.0), None)):
        differences = torch.tensor(
            [
                loss(objective, case, pair, i)
                - (loss(others, case, pair, i) if others else terms - scale * float(case.elbo.sum()))
                for i in range(30)
            ]
        )
        assert differences.mean().abs() <= 6 * differences.std() / 30**0.5 + tolerance, type(objective)
