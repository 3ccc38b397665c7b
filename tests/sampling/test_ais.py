"""Chains on a path: their weights are unbiased both ways, their steps those of the pilots alone."""

import math

import pytest
import torch

from ppvae.sampling.ais import PILOTS, Annealing, _Run
from ppvae.sampling.annealed_path import GeometricPath
from ppvae.sampling.posterior_draws import posterior_sampler, simulate
from ppvae.sampling.unconstrained import spread
from tests.reference import LinearGaussian


def quietly(n):
    """Takes note of no progress."""


def test_temperatures_rise_from_zero_to_one():
    assert Annealing(1, 1, 1).betas() == [0.0, 1.0]
    betas = torch.tensor(Annealing(1, 50, 1).betas())
    assert len(betas) == 51
    assert (betas[0], betas[-1]) == (0.0, 1.0)
    steps = betas.diff()
    assert bool((steps > 0).all())
    assert float(steps[0]) < float(steps[25]) / 5
    torch.testing.assert_close(steps, steps.flip(0))


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("num_temperatures", [1, 2, 5])
def test_the_mean_weights_are_p_and_one_over_p(num_temperatures, start):
    torch.manual_seed(0)
    pair, annealing = LinearGaussian(c=0.8), Annealing(4, num_temperatures, 2)
    with posterior_sampler(pair, (torch.zeros(4000),), seed=1) as c:
        path = GeometricPath(c, start, compile=False)
        drawn = simulate(c)
        with posterior_sampler(pair, drawn.data, seed=2) as part:
            there = annealing.forward(path, part, tick=quietly)
            back = annealing.backward(path, part, drawn.latents, there, tick=quietly)
    exact = pair.exact(drawn.data[0])
    for ratio in ((there.log_weight - exact).exp().mean(0), (back.log_weight + exact).exp().mean(0)):
        assert float(ratio.mean()) == pytest.approx(1, abs=4 * float(ratio.std()) / math.sqrt(len(ratio)))
        assert float(ratio.std()) / math.sqrt(len(ratio)) < 0.1
    assert there.log_weight.shape == back.log_weight.shape == (4, 4000)
    assert there.steps.shape == ((num_temperatures - 1, 4000) if num_temperatures > 1 else (0,))


def test_steps_depend_on_the_pilots_alone():
    def steps(change):
        pair, (x,) = LinearGaussian(), (torch.linspace(-2, 2, 7),)
        with posterior_sampler(pair, (x,), seed=3) as c:
            path = GeometricPath(c, "guide", compile=False)
            draw = path.draw
            path.draw = lambda part, s: (
                draw(part, s)[0] + change * (s == 5),
                None,
            )  # the chains themselves start elsewhere
            chains = Annealing(5, 20, 3).forward(path, c, tick=quietly)
        return chains.steps, chains.log_weight

    (a, weight_a), (b, weight_b) = steps(0.0), steps(0.3)
    assert torch.equal(a, b)
    assert not torch.equal(weight_a, weight_b)


def test_the_way_back_takes_the_same_steps(monkeypatch):
    taken, move = [], _Run.move

    def noted(run, beta, step, num_leapfrog):
        taken.append((beta, step))
        return move(run, beta, step, num_leapfrog)

    monkeypatch.setattr(_Run, "move", noted)
    with posterior_sampler(LinearGaussian(), (torch.zeros(6),), seed=0) as c:
        path, annealing = GeometricPath(c, "guide", compile=False), Annealing(3, 8, 2)
        drawn = simulate(c)
        there = annealing.forward(path, c, tick=quietly)
        annealing.backward(path, c, drawn.latents, there, tick=quietly)
    assert len(taken) == 14
    for (beta, step), (again, same) in zip(taken[:7], reversed(taken), strict=False):
        assert beta == again
        assert torch.equal(step, same)
    assert not torch.equal(taken[0][1], taken[6][1])


def test_the_spread_is_that_of_a_normal():
    torch.manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 20.0])
    found = spread(3 + scale * torch.randn(4000, 5, 3))
    torch.testing.assert_close(found, scale.expand(5, 3), rtol=0.1, atol=0)
    assert bool((spread(torch.ones(64, 2, 1)) > 0).all())


def test_counts():
    assert Annealing(7, 1, 10).num_parallel == 7
    assert Annealing(7, 2, 10).num_parallel == 7 + PILOTS
    assert Annealing(7, 100, 10).num_gradients == 990
    for name in ("num_chains", "num_temperatures", "num_leapfrog"):
        good = {"num_chains": 2, "num_temperatures": 2, "num_leapfrog": 2}
        for bad in (0, 1.5, True):
            with pytest.raises(ValueError, match=rf"{name} must be a whole number >= 1, got {bad}"):
                Annealing(**good | {name: bad})
