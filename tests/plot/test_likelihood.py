import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ppvae import plot
from ppvae.plot.figure import PALETTE


def title_of(figure):
    return figure.axes[0].get_title()


def test_bound_against_samples_with_its_errors():
    sizes, mean, error = torch.tensor([1, 10, 100]), torch.tensor([-95.0, -92.0, -91.0]), torch.tensor([0.5, 0.2, 0.0])
    (axes,) = plot.bound_curve(sizes, mean, error).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(1, -95), (10, -92), (100, -91)])
    (bars,) = axes.collections
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [-95.5, -94.5], rtol=1e-6)
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "importance samples")
    assert axes.get_ylabel().endswith("nats")
    (axes,) = plot.bound_curve([1, 10, 100], mean.numpy()).axes
    assert len(axes.lines) == 1
    assert not axes.collections


def test_histogram_holds_every_datum_and_names_the_mean():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) - 90
    (axes,) = plot.log_prob_histogram(values, xlabel="log p(x|y), nats").axes
    assert sum(bar.get_height() for bar in axes.patches) == 500
    (line,) = axes.lines
    assert line.get_xdata()[0] == pytest.approx(float(values.mean()), abs=1e-4)
    assert axes.get_title() == f"mean −{-float(values.mean()):.2f}"
    assert axes.get_xlabel() == "log p(x|y), nats"
    (axes,) = plot.log_prob_histogram(torch.tensor([-90.0])).axes
    assert sum(bar.get_height() for bar in axes.patches) == 1


def test_k_hat_is_drawn_in_order_and_coloured_by_the_limit():
    (axes,) = (figure := plot.pareto_k(torch.tensor([0.9, -0.2, 0.5, 0.71]))).axes
    drawn = {to_hex(line.get_color()): line.get_xydata() for line in axes.lines if line.get_marker() == "."}
    np.testing.assert_allclose(drawn[PALETTE[0]], [(0.25, -0.2), (0.5, 0.5)], rtol=1e-6)
    np.testing.assert_allclose(drawn[PALETTE[1]], [(0.75, 0.71), (1, 0.9)], rtol=1e-6)
    assert title_of(figure).endswith("> 0.7 for 2 of 4 data")
    assert axes.get_ylim()[0] < -0.2


def test_infinite_k_hat_is_a_triangle_at_the_edge():
    (axes,) = (figure := plot.pareto_k(np.array([np.inf, 0.3, -np.inf, 2.5]))).axes
    low, high = axes.get_ylim()
    triangles = {line.get_marker(): line.get_xydata() for line in axes.lines if line.get_marker() in "v^"}
    for marker, x in {"v": 0.25, "^": 1.0}.items():
        ((place, height),) = triangles[marker]
        assert place == x
        assert low < height < high
    assert triangles["v"][0, 1] < 0
    assert triangles["^"][0, 1] > 2.5
    assert title_of(figure).endswith("2 of 4 data")
    assert title_of(plot.pareto_k(torch.full((3,), -torch.inf))).endswith("0 of 3 data")
    assert title_of(plot.pareto_k(torch.full((3,), torch.inf))).endswith("3 of 3 data")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.bound_curve([1, 1], [0, 0]), r"num_samples: got \[1, 1\], expected rising numbers"),
        (lambda: plot.bound_curve([0, 1], [0, 0]), r"num_samples: got \[0, 1\]"),
        (lambda: plot.bound_curve([], []), r"num_samples: got \[\]"),
        (lambda: plot.bound_curve([1, 2], [0.0]), r"mean: got shape \(1,\), expected that of num_samples, \(2,\)"),
        (lambda: plot.bound_curve([1, 2], [0, 1], [1.0]), r"std_error: got shape \(1,\)"),
        (lambda: plot.bound_curve([1, 2], [0, math.nan]), "mean: got 1 nan or infinite"),
        (lambda: plot.log_prob_histogram(torch.zeros(2, 2)), r"values: got shape \(2, 2\), expected \(n,\)"),
        (lambda: plot.log_prob_histogram([]), r"values: got shape \(0,\)"),
        (lambda: plot.log_prob_histogram([-math.inf]), "values: got 1 nan or infinite"),
        (lambda: plot.pareto_k(torch.tensor([0.1, math.nan])), "k_hat: got 1 nan values of 2"),
        (lambda: plot.pareto_k(torch.zeros(0)), r"k_hat: got shape \(0,\)"),
        (lambda: plot.pareto_k(["high"]), "k_hat: got list, expected real numbers"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
