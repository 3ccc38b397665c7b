"""Moves of Hamiltonian Monte Carlo, on a density whose draws are exact."""

import math

import pytest
import torch

from ppvae.sampling.annealed_path import Point
from ppvae.sampling.hmc import transition

SCALE = torch.tensor([1.0, 3.0])


def logistic(position):
    """Independent logistic variables of different scales, at both ends of the path."""
    z = position / SCALE
    log_prob = (torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)).sum(-1)
    gradient = -(z / 2).tanh() / SCALE
    return Point(position, log_prob, log_prob, gradient, gradient)


def draws(s, n):
    u = torch.rand(s, n, 2, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return SCALE * torch.logit(u)


def uniforms(point):
    """Draws of the logistic distribution become uniform."""
    return (point.position / SCALE).sigmoid()


@pytest.mark.parametrize(("step", "low", "high"), [(0.3, 0.97, 1.0), (2.5, 0.4, 0.85)])
def test_moves_leave_the_density_as_it_is(step, low, high):
    torch.manual_seed(0)
    point = logistic(draws(100, 200))
    before = point.position
    for _ in range(4):
        point, accepted = transition(logistic, point, 0.3, step * SCALE, 3)
    u = uniforms(point)
    assert low < float(accepted.mean()) < high
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / u.numel()))
    assert float(u.var()) == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / u.numel()))
    moved = (point.position != before).any(-1).double().mean()
    assert float(moved) > 0.8
    again = logistic(point.position)
    assert torch.equal(again.log_joint, point.log_joint)
    assert torch.equal(again.grad_start, point.grad_start)


def test_chains_reach_the_density_from_elsewhere():
    torch.manual_seed(1)
    point = logistic(torch.full((100, 200, 2), 4.0, dtype=torch.float64))
    for _ in range(25):
        point, _ = transition(logistic, point, 0.7, SCALE, 5)
    u = uniforms(point)
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / u.numel()))
    assert float(u.var()) == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / u.numel()))


def test_the_path_between_two_densities():
    def density(position):
        start, joint = -0.5 * position**2, -0.5 * ((position - 2) / 0.5) ** 2
        return Point(position, start.sum(-1), joint.sum(-1), -position, -(position - 2) / 0.25)

    torch.manual_seed(2)
    point, beta = density(torch.zeros(50, 400, 1)), 0.25
    precision = 0.75 + 0.25 * 4
    for _ in range(20):
        point, _ = transition(density, point, beta, torch.tensor(0.5), 3)
    z = (point.position - 0.25 * 4 * 2 / precision) * precision**0.5
    assert float(z.mean()) == pytest.approx(0, abs=4 / z.numel() ** 0.5)
    assert float(z.var()) == pytest.approx(1, abs=4 * (2 / z.numel()) ** 0.5)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_moves_to_where_there_is_no_density_are_refused(bad):
    def half(position):
        point = logistic(position)
        outside = position[..., 0] < 0
        log_prob = torch.where(outside, bad, point.log_joint)
        return Point(position, log_prob, log_prob, point.grad_start, point.grad_joint)

    torch.manual_seed(3)
    point = half(draws(50, 200).abs())
    for _ in range(5):
        point, accepted = transition(half, point, 0.5, SCALE, 3)
    assert bool((point.position[..., 0] >= 0).all())
    assert 0.2 < float(accepted.mean()) < 0.95
    u = 2 * uniforms(point)[..., 0] - 1
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / u.numel()))
