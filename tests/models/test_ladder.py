import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae.data import Batches, Binarize, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.infer import SVI
from ppvae.models import LadderVAE
from ppvae.nn import MLP
from ppvae.objectives import Linear
from tests.models.by_hand import assert_same_loss, loc_scale, log_normal, noise_of
from tests.models.levels import D, LinearLevels, N, ladder


def by_hand(pair, x, noise):
    """Draws of the guide, and (q, p) of each level, both as location and scale, from the top."""
    found, h = [], x
    for d, q_z in zip(pair.d, pair.q_z_given_d, strict=True):
        h = d(h)
        found.append(loc_scale(q_z, h))
    z, levels = [], []
    for i in reversed(range(len(found))):
        if not z:
            p, q = (torch.zeros(2), torch.ones(2)), found[i]
        else:
            p = loc_scale(pair.p_z[i], *(z if pair.skip else z[:1]))
            (p_loc, p_precision), (q_loc, q_precision) = ((loc, 1 / scale**2) for loc, scale in (p, found[i]))
            variance = 1 / (p_precision + q_precision)
            q = variance * (p_loc * p_precision + q_loc * q_precision), variance.sqrt()
        z.insert(0, q[0] + q[1] * noise[len(z)])
        levels.append((q, p))
    return z, levels


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("loss", "beta"), [(Trace_ELBO, 1.0), (Trace_ELBO, 3.0), (TraceMeanField_ELBO, 3.0)])
def test_loss_and_gradients_are_those_of_the_formula(skip, loss, beta):
    """Also where every level's KL is in closed form."""
    pair = ladder(skip=skip, beta=beta)
    x = pair.sample(N)
    z, levels = by_hand(pair, x, noise_of((N, 2), (N, 3), (N, 4)))  # from the top
    if loss is Trace_ELBO:
        kl = sum(log_normal(v, *q) - log_normal(v, *p) for v, (q, p) in zip(reversed(z), levels, strict=True))
    else:
        normals = [(dist.Normal(*q), dist.Normal(*p)) for q, p in levels]
        kl = sum(torch.distributions.kl_divergence(q, p).sum(-1) for q, p in normals)
    likelihood = dist.Bernoulli(logits=pair.p_x_given_z.net(*(z if skip else z[:1]))).log_prob(x).sum(-1)
    expected = -(likelihood - beta * kl).sum()
    assert_same_loss(pair, lambda: loss().differentiable_loss(pair.model, pair.guide, x), expected)


def test_codes_are_means_of_the_corrected_path():
    pair = ladder()
    x = pair.sample(N)
    _, levels = by_hand(pair, x, [0.0, 0.0, 0.0])
    for q_z, ((loc, scale), _) in zip(reversed(pair.encode(x).values()), levels, strict=True):
        torch.testing.assert_close(q_z.mean, loc)
        torch.testing.assert_close(q_z.stddev, scale)


def test_both_elbos_agree():
    pair = LinearLevels(3).ladder(width=1.4)
    x = pair.sample(1).expand(20000, 4)
    losses = []
    for loss in (Trace_ELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(0)
        losses.append(loss.loss(pair.model, pair.guide, x) / len(x))
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert -losses[0] == pytest.approx(ppvae.elbo(pair, x[:1], num_samples=20000).mean(), abs=0.05)


def test_only_normal_levels_can_be_merged():
    pair = ladder((2, 2))
    pair.p_z[0] = ConditionalBernoulli(MLP(2, (), 2))
    with pytest.raises(TypeError, match="p must be a diagonal normal distribution, got Independent"):
        pair.guide(torch.zeros(N, D))
    pair = ladder((2, 2))
    pair.p_z[0] = ConditionalNormal(MLP(2, (), (2, 1)))
    with pytest.raises(ValueError, match=r"p and q must have the same event shape, got \(1,\), \(2,\)"):
        pair.guide(torch.zeros(N, D))


def test_batch_norm_while_training_and_while_evaluating():
    pair = ladder((3, 2), norm="batch")
    x = torch.bernoulli(torch.full((40, D), 0.5))
    svi = SVI(pair.model, pair.guide, torch.optim.Adam, Trace_ELBO(), compile=False)
    svi.step(x)
    steps = {key.split(".")[0]: int(value) for key, value in pair.state_dict().items() if "batches_tracked" in key}
    assert steps == {"p_z": 2, "p_x_given_z": 1, "d": 1}  # the guide and the model each run the priors
    for _ in range(50):
        svi.step(x)
    alone = ppvae.log_marginal(pair, x, num_samples=20, batch_size=1).values
    torch.testing.assert_close(alone, ppvae.log_marginal(pair, x, num_samples=20).values)
    assert pair.training


@pytest.mark.slow
def test_half_of_the_units_of_every_level_stay_active_on_digits():
    """Units whose posterior mean varies by more than 0.01 over the data (Burda et al. 2016)."""
    torch.manual_seed(0)
    dims, h, options = (16, 8, 4), 64, {"norm": "batch", "activation": "leaky_relu"}
    pair = LadderVAE(
        p_z=[
            ConditionalNormal(MLP(dims[1], (h,), (2, dims[0]), **options)),
            ConditionalNormal(MLP(dims[2], (h,), (2, dims[1]), **options)),
            StandardNormal(dims[2]),
        ],
        p_x_given_z=ConditionalBernoulli(MLP(dims[0], (h,), (1, 8, 8), **options)),
        d=[MLP((1, 8, 8), (h,), h, **options), MLP(h, (h,), h, **options), MLP(h, (h,), h, **options)],
        q_z_given_d=[ConditionalNormal(nn.Sequential(nn.LeakyReLU(), MLP(h, (), (2, k)))) for k in dims],
    )
    data = load("digits")
    train = Batches(data.train.x, batch_size=128, transform=Binarize())
    ppvae.fit(pair, train, epochs=60, lr=3e-3, kl_weight=Linear(40), compile=False, progress=False)
    codes = [q_z.mean for q_z in pair.eval().encode(data.test.x.round()).values()]
    active = [int((code.var(0) > 0.01).sum()) for code in codes]
    assert all(units >= k / 2 for units, k in zip(active, dims, strict=True)), active
