import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from ppvae.evaluate import bound_curve, pareto_k
from ppvae.evaluate.arviz import import_arviz

INF = math.inf


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pareto(s, k, n=20):
    """Log-weights with P(w > t) = t^(-1/k)."""
    uniform = torch.rand(s, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return -k * uniform.log()


# k̂.


@pytest.mark.parametrize("s", [100, 101, 1000, 5000])
def test_is_that_of_arviz(s):
    log_weight = torch.cat([normal(s, 3), 4 * normal(s, 3) - 1e4, pareto(s, 0.5, n=3), 300 * normal(s, 1)], 1)
    log_weight[: s // 3, 4] = -INF
    k = pareto_k(log_weight)
    psislw = getattr(import_arviz(), "psislw", None) or pytest.skip("this ArviZ has none")
    expected = [psislw(column.numpy().copy())[1] for column in log_weight.T]
    np.testing.assert_allclose(k, np.array(expected), rtol=1e-10)
    assert (k.dtype, k.shape) == (torch.float64, (10,))
    assert k.isfinite().sum() >= 9
    torch.testing.assert_close(pareto_k(log_weight.float()), k, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.5])
def test_finds_the_shape_of_a_pareto_tail(k):
    assert float(pareto_k(pareto(20_000, k)).mean()) == pytest.approx(k, abs=0.05)


def test_too_few_samples_have_no_tail():
    assert pareto_k(normal(99, 4)).isnan().all()
    assert not pareto_k(normal(100, 4)).isnan().any()


def with_tail(*tail):
    """A thousand weights that are one but for these, of one datum."""
    weight = torch.ones(1000, 1, dtype=torch.float64)
    weight[: len(tail), 0] = torch.tensor(tail)
    return weight.log()


@pytest.mark.parametrize(
    ("log_weight", "k"),
    [
        (with_tail(), -INF),
        (torch.full((200, 2), -1e5), -INF),
        (with_tail(3.0, 3.0), -INF),  # four thousandths of the estimate
        (with_tail(*[5.0] * 300), -INF),  # the tail is an atom
        (with_tail(*[0.0] * 300), -INF),
        (with_tail(1e3), INF),  # half of the estimate is one weight
        (with_tail(1e300, 1e290), INF),
        (torch.full((200, 2), -INF), INF),
        (torch.cat([torch.zeros(3, 1), torch.full((997, 1), -INF)]), INF),
    ],
)
def test_where_there_is_no_tail_to_fit(log_weight, k):
    assert pareto_k(log_weight).tolist() == [k] * log_weight.shape[1]


def test_rounding_is_no_tail():
    noise = 1e-6 * normal(1000, 50)
    assert (pareto_k(noise) < 0.5).all()
    assert (pareto_k((noise * 2**20).round() / 2**20 - 90) < 0.5).all()
    assert (pareto_k(1e-16 * normal(1000, 50)) < 0.7).all()


def test_data_without_weight_do_not_disturb_others():
    log_weight = normal(500, 3)
    log_weight[:, 1] = -INF
    k = pareto_k(log_weight)
    assert k[1] == INF
    torch.testing.assert_close(k[[0, 2]], pareto_k(log_weight[:, [0, 2]]))
    before = log_weight.clone()
    pareto_k(log_weight)
    assert torch.equal(log_weight, before)


def test_blocks_of_data_change_nothing():
    log_weight = 2 * normal(500, 150)
    assert torch.equal(pareto_k(log_weight)[70:75], pareto_k(log_weight[:, 70:75]))


def test_arviz_is_not_needed():
    code = "import sys, torch; from ppvae.evaluate import pareto_k; pareto_k(torch.randn(100, 2))"
    code += "; print('arviz' in sys.modules)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "False"), result.stderr


# The bound against the number of samples.


def by_brute_force(log_weight, size):
    """The mean over the groups of `size` consecutive samples of log of their mean weight."""
    means = [log_weight[i : i + size].exp().mean(0).log() for i in range(0, len(log_weight) - size + 1, size)]
    return torch.stack(means).mean(0)


@pytest.mark.parametrize("s", [1, 2, 3, 9, 10, 99, 257, 1000])
def test_curve_is_the_mean_over_groups(s):
    log_weight = normal(s, 4)
    curve = bound_curve(log_weight)
    sizes = [size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if size <= s]
    assert list(curve) == (sizes if s in sizes else [*sizes, s])
    for size, bound in curve.items():
        torch.testing.assert_close(bound, by_brute_force(log_weight, size))


def test_curve_of_far_and_zero_weights():
    log_weight = normal(100, 3)
    shifted = {size: bound + 1e5 for size, bound in bound_curve(log_weight - 1e5).items()}
    torch.testing.assert_close(shifted, bound_curve(log_weight), rtol=0, atol=1e-9)
    log_weight[::2, 0] = -INF
    log_weight[:, 1] = -INF
    curve = bound_curve(log_weight)
    assert curve[1][:2].tolist() == [-INF, -INF]
    assert curve[2][0].isfinite()
    assert (torch.stack(list(curve.values()))[:, 1] == -INF).all()


def test_curve_rises_in_expectation():
    """log-normal weights: the bound of one is the mean of log w, that of many is log of the mean weight."""
    curve = bound_curve(normal(1000, 2000))
    means = [float(bound.mean()) for bound in curve.values()]
    assert means == sorted(means)
    assert means[0] == pytest.approx(0.0, abs=4 / math.sqrt(2e6))
    assert means[-1] == pytest.approx(0.5, abs=0.01)


def test_rounding_of_equal_weights_is_no_tail():
    """Those of an exact posterior in float32 are a few numbers side by side, to which any tail can be fitted."""
    noise = torch.randint(-3, 4, (2000, 50)) * 1e-6 * (torch.rand(2000, 50) < 0.05) - 40.0
    assert (pareto_k(noise) == -math.inf).all()
