import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import ppvae
from tests.models.by_hand import assert_same_loss, loc_scale, log_normal, noise_of
from tests.models.levels import N, hierarchical


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_loss_and_gradients_are_those_of_the_formula(skip, beta):
    pair = hierarchical(skip=skip, beta=beta)
    x = pair.sample(N)
    noise = noise_of((N, 4), (N, 3), (N, 2))  # from the data upwards
    below, above, log_q = [x], [], 0.0
    for q_z, e in zip(pair.q_z, noise, strict=True):
        loc, scale = loc_scale(q_z, *(below if skip else below[:1]))
        below.insert(0, loc + scale * e)
        log_q = log_q + log_normal(below[0], loc, scale)
    z3, z2, z1, _ = below
    log_p = log_normal(z3, torch.zeros(2), torch.ones(2))
    log_p = log_p + log_normal(z2, *loc_scale(pair.p_z[1], z3))
    log_p = log_p + log_normal(z1, *loc_scale(pair.p_z[0], *([z2, z3] if skip else [z2])))
    above = [z1, z2, z3] if skip else [z1]
    likelihood = dist.Bernoulli(logits=pair.p_x_given_z.net(*above)).log_prob(x).sum(-1)
    expected = -(likelihood + beta * (log_p - log_q)).sum()
    assert_same_loss(pair, lambda: Trace_ELBO().differentiable_loss(pair.model, pair.guide, x), expected)


def test_codes_are_means_of_means():
    pair = hierarchical()
    x = pair.sample(N)
    q_z = pair.encode(x)
    torch.testing.assert_close(q_z["z1"].mean, loc_scale(pair.q_z[0], x)[0])
    torch.testing.assert_close(q_z["z3"].mean, loc_scale(pair.q_z[2], loc_scale(pair.q_z[1], q_z["z1"].mean)[0])[0])


def test_an_elbo_for_which_the_guide_is_in_the_wrong_order_warns():
    """KL(q(z1|x) ‖ p(z1|z2)) in closed form would take z2 to be independent of z1."""
    pair = hierarchical()
    x = pair.sample(N)
    with pytest.warns(UserWarning, match="Failed to verify mean field restriction"):
        ppvae.fit(pair, x, loss=TraceMeanField_ELBO(), epochs=1, progress=False)


def test_validation_names_a_level_whose_size_does_not_fit():
    pair = hierarchical((4, 3, 2))
    pair.p_z[0] = hierarchical((4, 5, 2)).p_z[0]
    with pyro.validation_enabled(), pytest.raises(ValueError, match="the pair fails on a minibatch of train"):
        ppvae.fit(pair, torch.zeros(N, 6), epochs=1, progress=False)
