"""Divergences of draws, against closed forms of normals, kernels by hand, and permutations."""

import math

import pytest
import torch
from torch import nn

from ppvae.objectives import MMD, Critic
from ppvae.objectives.divergence import permuted


def expected_kernel(loc_a, var_a, loc_b, var_b, c):
    """E exp(−‖a − b‖²/c) of two independent diagonal normals."""
    variance, square = var_a + var_b, (loc_a - loc_b).square()
    return ((1 + 2 * variance / c).rsqrt() * (-square / (c + 2 * variance)).exp()).prod()


def closed_form(loc, var, scales):
    """The squared MMD between N(loc, diag var) and N(0, I) under the sum of Gaussian kernels."""
    zero, one = torch.zeros_like(loc), torch.ones_like(var)
    units = [2 * len(loc) * s for s in scales]
    same = [expected_kernel(loc, var, loc, var, c) + expected_kernel(zero, one, zero, one, c) for c in units]
    return sum(same) - 2 * sum(expected_kernel(loc, var, zero, one, c) for c in units)


def estimates(mmd, loc, var, n, repeats):
    return torch.stack(
        [mmd(loc + var.sqrt() * torch.randn(n, len(loc)), torch.randn(n, len(loc))) for _ in range(repeats)]
    )


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize(
    ("loc", "var"), [([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]), ([0.4, 0.0, -0.2], [0.5, 1.0, 2.0])], ids=["equal", "unequal"]
)
def test_mmd_is_unbiased_at_every_number_of_draws(loc, var, n):
    """Against the closed form for normals, which is zero where the two are the same."""
    loc, var, scales = torch.tensor(loc), torch.tensor(var), (0.2, 1.0)
    found = estimates(MMD("rbf", scales), loc, var, n, 1500).double()
    expected = float(closed_form(loc, var, scales))
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(len(found))
    if expected < 1e-6:
        assert bool((found < 0).any())


def test_imq_mmd_is_zero_in_the_mean_at_equal_distributions_and_not_elsewhere():
    zero, one = torch.zeros(3), torch.ones(3)
    equal, other = (estimates(MMD(), loc, one, 20, 400).double() for loc in (zero, zero + 0.7))
    assert abs(float(equal.mean())) < 4 * float(equal.std()) / math.sqrt(len(equal))
    assert float(other.mean()) > 10 * float(other.std()) / math.sqrt(len(other))


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_mmd_by_hand(kernel):
    z, others, mmd = torch.randn(4, 3), torch.randn(4, 3), MMD(kernel, (0.5, 2.0), variance=1.5)

    def k(a, b):
        square, units = float((a - b).square().sum()), [2 * 3 * 1.5 * s for s in (0.5, 2.0)]
        return sum(c / (c + square) if kernel == "imq" else math.exp(-square / c) for c in units)

    pairs = [(i, j) for i in range(4) for j in range(4)]
    within = sum(k(z[i], z[j]) + k(others[i], others[j]) for i, j in pairs if i != j) / 12
    expected = within - 2 * sum(k(z[i], others[j]) for i, j in pairs) / 16
    assert float(mmd(z, others)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_permutation_test_by_mmd_holds_its_level_and_finds_a_difference():
    def p_value(z, others, permutations=60):
        both, mmd = torch.cat([z, others]), MMD()
        drawn = [both[torch.randperm(len(both))] for _ in range(permutations)]
        null = torch.stack([mmd(draws[: len(z)], draws[len(z) :]) for draws in drawn])
        return (1 + int((null >= mmd(z, others)).sum())) / (1 + permutations)

    equal = [p_value(torch.randn(25, 2), torch.randn(25, 2)) for _ in range(40)]
    assert 0.3 < sum(equal) / len(equal) < 0.7
    assert sum(p < 0.1 for p in equal) <= 10
    assert p_value(torch.randn(25, 2) + 1.5, torch.randn(25, 2)) < 0.05


def test_the_gradient_of_mmd_is_finite_where_draws_coincide():
    z = torch.zeros(3, 2, requires_grad=True)
    MMD()(z, torch.zeros(3, 2)).backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


class Quadratic(nn.Module):
    """A logit of the family that log q/p of two normals is of."""

    def __init__(self, k):
        super().__init__()
        self.linear = nn.Linear(2 * k, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z):
        return self.linear(torch.cat([z, z.square()], -1))


def test_the_critic_finds_the_kl_of_two_normals():
    loc, scale, n = torch.tensor([0.5, -1.0]), torch.tensor([0.6, 1.4]), 20_000
    critic = Critic(Quadratic(2))
    z, others = loc + scale * torch.randn(n, 2), torch.randn(n, 2)
    optimizer = torch.optim.LBFGS(critic.net.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = critic.loss(z, others)
        loss.backward()
        return loss

    optimizer.step(closure)
    kl = 0.5 * (scale.square() + loc.square() - 1 - 2 * scale.log()).sum()
    assert float(critic.log_ratio(z).mean()) == pytest.approx(float(kl), abs=0.05)


def test_the_two_sides_of_a_critic_reach_only_their_own_parameters():
    critic, z = Critic(nn.Linear(3, 1)), torch.randn(5, 3, requires_grad=True)
    critic.loss(z, torch.randn(5, 3)).backward()
    assert z.grad is None
    assert all(p.grad is not None for p in critic.net.parameters())
    critic.net.zero_grad()
    critic.penalty(critic.log_ratio(z)).backward()
    torch.testing.assert_close(z.grad, critic.net.weight.detach().expand(5, 3) / 5)
    assert all(p.grad is None for p in critic.net.parameters())


def test_what_the_encoder_minimises_of_the_logit():
    logit = torch.tensor([-1.0, 2.0])
    assert float(Critic(nn.Linear(1, 1)).penalty(logit)) == pytest.approx(0.5)
    expected = sum(math.log(1 + math.exp(t)) for t in (-1.0, 2.0)) / 2
    assert float(Critic(nn.Linear(1, 1), "non-saturating").penalty(logit)) == pytest.approx(expected)


def test_each_dimension_is_permuted_in_an_order_of_its_own():
    z = torch.arange(200).reshape(50, 4)  # every element is another number
    new = permuted(z.float()).long()
    for j in range(4):
        assert torch.equal(new[:, j].sort().values, z[:, j])
    rows = new // 4  # which datum each element is of
    assert all(not torch.equal(rows[:, i], rows[:, j]) for i in range(4) for j in range(i))
    assert not torch.equal(rows[:, 0], torch.arange(50))


def test_permuted_codes_have_independent_dimensions():
    z = torch.randn(4000, 1).expand(4000, 3)
    correlation = torch.corrcoef(permuted(z).T)
    assert float((correlation - torch.eye(3)).abs().max()) < 0.08


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MMD("nope"), ValueError, "kernel must be 'imq' or 'rbf', got 'nope'"),
        (lambda: MMD(scales=()), ValueError, r"scales must be a tuple of positive numbers, got \(\)"),
        (lambda: MMD(scales=(1.0, -1.0)), ValueError, r"scales\[1\] must be a finite number > 0, got -1.0"),
        (lambda: MMD(variance=0.0), ValueError, "variance must be a finite number > 0, got 0.0"),
        (lambda: Critic(3), TypeError, "critic must be a torch.nn.Module, got int"),
        (lambda: Critic(nn.Linear(1, 1), "nope"), ValueError, "encoder_loss must be 'ratio' or 'non-saturating'"),
        (lambda: Critic(nn.Linear(1, 1), steps=0), ValueError, "critic_steps must be a whole number >= 1, got 0"),
        (lambda: MMD()(torch.zeros(1, 2), torch.zeros(1, 2)), ValueError, "a minibatch of one datum has none"),
        (lambda: permuted(torch.zeros(1, 2)), ValueError, "a minibatch of one datum has no other"),
        (
            lambda: Critic(nn.Linear(2, 3)).log_ratio(torch.zeros(4, 2)),
            ValueError,
            r"critic must return one number for each of 4 codes, .* got shape \(4, 3\)",
        ),
    ],
)
def test_wrong_options_and_too_few_draws_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
