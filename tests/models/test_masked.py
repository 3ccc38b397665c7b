"""What was observed has the likelihood that its marginal has, and what was not is drawn from its conditional."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

import ppvae
from ppvae.data import Table, split_missing
from ppvae.distributions import (
    ColumnEncoder,
    ConditionalColumns,
    ConditionalNormal,
    StandardNormal,
    num_params,
)
from ppvae.evaluate import encode, impute
from ppvae.models import MaskedVAE
from ppvae.nn import MLP, ConcatInputs

D, K, SIGMA = 5, 2, 0.5


class ExactPosterior(nn.Module):
    """p(z | x observed) of a linear model."""

    def __init__(self, weight, spread=1.0):
        super().__init__()
        self.weight, self.spread = weight, spread

    def forward(self, x, observed):
        seen = observed.to(x.dtype) / SIGMA**2
        precision = torch.eye(K) + torch.einsum("dk,nd,dl->nkl", self.weight, seen, self.weight)
        covariance = torch.linalg.inv(precision)
        mean = torch.einsum("nkl,dl,nd->nk", covariance, self.weight, seen * x)
        return torch.distributions.MultivariateNormal(mean, self.spread**2 * covariance)


class PyroNormal(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *context):
        import pyro.distributions as dist

        fn = self.inner(*context)
        return dist.MultivariateNormal(fn.loc, fn.covariance_matrix)


def linear(spread=1.0):
    torch.manual_seed(0)
    net = nn.Linear(K, D, bias=False)
    weight = net.weight.detach()
    pair = MaskedVAE(
        StandardNormal(K),
        ConditionalNormal(net, scale=SIGMA, event_dim=1),
        PyroNormal(ExactPosterior(weight, spread)),
    )
    return pair, weight


def data(n=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    _, weight = linear()
    x = torch.randn(n, K, generator=generator) @ weight.T + SIGMA * torch.randn(n, D, generator=generator)
    observed = torch.rand(n, D, generator=generator) < 0.6
    observed[0], observed[1] = True, False
    return x, observed


def exact(x, observed):
    """Log p of what was observed, its conditional means and covariances of the rest."""
    _, weight = linear()
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(D)
    log_p = torch.zeros(len(x))
    for i, (row, seen) in enumerate(zip(x, observed, strict=True)):
        if seen.any():
            part = covariance[seen][:, seen]
            log_p[i] = torch.distributions.MultivariateNormal(torch.zeros(len(part)), part).log_prob(row[seen])
    return log_p, covariance


def test_log_p_of_what_was_observed_is_that_of_the_marginal():
    pair, _ = linear()
    x, observed = data()
    estimate = ppvae.log_marginal(pair, x, observed, num_samples=20)
    torch.testing.assert_close(estimate.values.float(), exact(x, observed)[0], atol=2e-4, rtol=1e-4)
    assert float(estimate.values[1]) == pytest.approx(0.0, abs=1e-5)  # of nothing
    wide, _ = linear(spread=1.3)
    estimate = ppvae.log_marginal(wide, x, observed, num_samples=4000)
    error = (estimate.values - exact(x, observed)[0]) / estimate.std_error.clamp(min=1e-4)
    assert float(error.abs().max()) < 5
    bound = ppvae.elbo(wide, x, observed, num_samples=500)
    assert (bound.values < exact(x, observed)[0] + 4 * bound.std_error).all()


def test_what_stands_where_nothing_was_observed_changes_no_number():
    pair, _ = linear()
    x, observed = data()
    other = torch.where(observed, x, 100 * torch.randn_like(x))
    one, two = (ppvae.log_marginal(pair, of, observed, num_samples=5).values for of in (x, other))
    assert torch.equal(one, two)
    holes, found = split_missing(torch.where(observed, x, math.nan))
    assert torch.equal(found, observed)
    assert torch.equal(ppvae.log_marginal(pair, holes, found, num_samples=5).values, one)


@pytest.mark.parametrize(("spread", "method"), [(1.2, "importance"), (0.2, "adaptive")])
def test_imputations_have_the_moments_of_the_exact_conditional(spread, method):
    """Also where the guide is five times too narrow, which proposals fitted to each datum make good."""
    pair, _ = linear(spread=spread)
    x, observed = data()
    imputed = impute(pair, x, observed, num_samples=4000, num_particles=4000, method=method)
    _, covariance = exact(x, observed)
    assert (imputed.draws[:, observed] == x[observed]).all()
    for i in (2, 3, 4, 5):
        seen, gone = observed[i], ~observed[i]
        if not (seen.any() and gone.any()):
            continue
        gain = covariance[gone][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
        mean, rest = gain @ x[i, seen], covariance[gone][:, gone] - gain @ covariance[seen][:, gone]
        drawn = imputed.draws[:, i, gone]
        error = 6 * rest.diagonal().sqrt() / math.sqrt(2000)
        assert ((drawn.mean(0) - mean).abs() < error).all()
        assert ((drawn.var(0) / rest.diagonal() - 1).abs() < 0.25).all()
    assert (imputed.pareto_k < 0.7).all()


def test_intervals_of_imputations_cover_as_often_as_they_say():
    pair, _ = linear()
    x, observed = data(n=400)
    imputed = impute(pair, x, observed, num_samples=200, num_particles=200)
    hidden = int((~observed).sum())
    for level in (0.5, 0.9):
        assert abs(imputed.coverage(x, level) - level) < 5 * math.sqrt(level * (1 - level) / hidden) + 0.01


def frame(n=80):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, generator=generator)
    noise = torch.randn(n, generator=generator)
    made = pd.DataFrame(
        {
            "height": (170 + 10 * z + noise).numpy(),
            "kind": [["a", "b", "c"][int(v)] for v in (z + 1.5).clamp(0, 2.9)],
            "visits": torch.poisson((1 + 0.5 * z).exp(), generator=generator).int().numpy(),
        }
    )
    made.loc[::7, "height"] = None
    made.loc[3::9, "kind"] = None
    return made


def test_a_table_trains_is_scored_and_completed():
    torch.manual_seed(0)
    table = Table.of(frame())
    x, observed = table.tensors(frame())
    pair = MaskedVAE(
        StandardNormal(2),
        ConditionalColumns(MLP(2, (16,), num_params(table.columns)), table.columns),
        ConditionalNormal(ColumnEncoder(table.columns, (16,), (2, 2))),
    )
    run = ppvae.fit(pair, (x, observed), epochs=40, lr=1e-2, batch_size=40, progress=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 0.5
    estimate = ppvae.log_marginal(pair, x, observed, num_samples=50)
    assert estimate.values.isfinite().all()
    assert math.isnan(estimate.num_dims)
    alone = observed & (torch.arange(3) == 0)
    of_one = ppvae.log_marginal(pair, x, alone, num_samples=500)
    of_none = ~observed[:, 0]
    assert (of_one.values[of_none].abs() < 6 * of_one.std_error[of_none]).all()
    assert encode(pair, x, observed).shape == (80, 2)
    imputed = impute(pair, x, observed, num_samples=10)
    whole = table.frame(imputed.draws[0])
    assert whole.notna().all().all()
    assert set(whole["kind"]) <= {"a", "b", "c"}


@pytest.mark.usefixtures("with_and_without_inductor")
def test_the_compiled_step_gives_the_same_losses():
    table = Table.of(frame())
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        decoder, encoder = MLP(2, (), num_params(table.columns)), ColumnEncoder(table.columns, (), (2, 2))
        pair = MaskedVAE(StandardNormal(2), ConditionalColumns(decoder, table.columns), ConditionalNormal(encoder))
        run = ppvae.fit(pair, table.tensors(frame()), epochs=2, batch_size=40, compile=compile, progress=False)
        losses.append([row["loss"] for row in run.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_pixels_of_any_shape_with_a_net_of_both():
    torch.manual_seed(0)
    shape = (1, 3, 2)
    encoder = ConcatInputs((shape, shape), MLP(12, (8,), (2, K)))
    pair = MaskedVAE(StandardNormal(K), ConditionalNormal(MLP(K, (8,), (2, *shape))), ConditionalNormal(encoder))
    x, observed = torch.randn(9, *shape), torch.rand(9, *shape) < 0.5
    ppvae.fit(pair, (x, observed), epochs=1, batch_size=4, progress=False)
    assert impute(pair, x, observed, num_samples=3).draws.shape == (3, 9, *shape)


def test_bad_input_is_named():
    pair, _ = linear()
    x, observed = data()
    with pytest.raises(ValueError, match="num_samples must be a whole number >= 1, got 0"):
        impute(pair, x, observed, num_samples=0)
    with pytest.raises(ValueError, match=r"site must be one of \['x'\], got 'y'"):
        impute(pair, x, observed, site="y")
    with pytest.raises(ValueError, match="method must be 'importance' or 'adaptive', got 'annealed'"):
        impute(pair, x, observed, method="annealed")
    with pytest.raises(ValueError, match="beta must be"):
        MaskedVAE(pair.p_z, pair.p_x_given_z, pair.q_z_given_x, beta=-1)
    with pytest.raises(TypeError, match="p_z must be a module"):
        MaskedVAE(None, pair.p_x_given_z, pair.q_z_given_x)
