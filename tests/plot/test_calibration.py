import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ppvae import plot
from ppvae.evaluate.sbc import ecdf_band
from ppvae.plot.figure import PALETTE


def legend(axes):
    return axes.get_legend() and [text.get_text() for text in axes.get_legend().get_texts()]


def legend_fits(figure):
    figure.draw_without_rendering()
    (axes,) = figure.axes
    box = axes.get_legend().get_window_extent()
    return box.x0 >= axes.get_window_extent().x1 and box.x1 <= figure.bbox.x1


def uniform(n, largest, k=None, seed=0):
    shape = (n,) if k is None else (n, k)
    return torch.randint(largest + 1, shape, generator=torch.Generator().manual_seed(seed))


def test_ppc_draws_replicates_and_the_data():
    replicated = torch.arange(100) / 10 + 0.05
    figure = plot.ppc(7.0, replicated, name="mean")
    (axes,) = figure.axes
    (line,) = axes.lines
    assert list(line.get_xdata()) == [7.0, 7.0]
    assert sum(patch.get_height() for patch in axes.patches) == 100
    assert (axes.get_title(), axes.get_xlabel()) == ("tail probability 0.300", "mean")
    assert legend(axes) == ["replicates", "data"]
    assert legend_fits(figure)


def test_ppc_of_counts_has_a_bin_per_count_and_halves_ties():
    (axes,) = plot.ppc(torch.tensor(2), torch.tensor([1, 2, 2, 5])).axes
    assert axes.get_title() == "tail probability 0.500"
    assert [patch.get_height() for patch in axes.patches] == [1, 2, 0, 0, 1]
    assert axes.patches[1].get_x() == 1.5


def test_ecdf_within_the_band_is_grey_and_outside_is_named():
    ranks = torch.stack([uniform(500, 19), uniform(500, 19).clamp(5, 14)], 1)
    low, high = ecdf_band(500, 19)
    figure = plot.sbc_ecdf(ranks, low, high, names=["z[0]", "z[1]"])
    (axes,) = figure.axes
    _, calm, wrong, dot = axes.lines  # the first is zero
    ecdf = np.array([(ranks[:, 1] <= r).double().mean() for r in range(20)])
    np.testing.assert_allclose(wrong.get_ydata(), ecdf - np.arange(1, 21) / 20)
    np.testing.assert_allclose(wrong.get_xdata(), np.arange(20) / 19)
    out = (ecdf < low - 1e-9) | (ecdf > high + 1e-9)
    furthest = np.where(out, np.abs(wrong.get_ydata()), 0).argmax()
    assert (dot.get_xdata(), dot.get_ydata()) == (furthest / 19, wrong.get_ydata()[furthest])
    assert 0 < out.sum() < 20
    assert [to_hex(line.get_color()) for line in (calm, wrong)] == [PALETTE[8], PALETTE[0]]
    assert legend(axes) == ["z[1]"]
    assert legend_fits(figure)
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx((low - np.arange(1, 21) / 20).min())
    assert edges.max() == pytest.approx((high - np.arange(1, 21) / 20).max())


def test_ecdf_of_one_dimension_without_anything_to_name():
    (axes,) = plot.sbc_ecdf(uniform(500, 19), *ecdf_band(500, 19)).axes
    assert len(axes.lines) == 2
    assert legend(axes) is None


def test_the_band_itself_is_not_outside():
    low, high = ecdf_band(37, 9)
    for edge in (low, high):
        counts = np.diff(np.round(edge * 37).astype(int), prepend=0)
        ranks = np.repeat(np.arange(10), counts)
        assert legend(plot.sbc_ecdf(ranks, low, high).axes[0]) is None


def test_rank_histograms_have_even_bins_and_the_range_of_uniform_ones():
    from scipy.stats import binom

    figure = plot.rank_histogram(uniform(600, 99, 5), 99, names=list("abcde"))
    assert [axes.get_title() for axes in figure.axes] == list("abcde")
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    span, bars = heights[0], heights[1:]
    assert len(bars) == 20
    assert sum(bars) == 600
    assert span == pytest.approx(np.diff(binom.interval(0.99, 600, 1 / 20))[0])
    assert len(plot.rank_histogram(uniform(50, 11), 11, num_bins=8).axes[0].patches) == 1 + 6  # 12 values
    assert len(plot.rank_histogram(uniform(50, 22), 22).axes[0].patches) == 1 + 23  # a prime


def test_guide_against_nuts_in_two_dimensions_has_ellipses_of_the_moments():
    torch.manual_seed(0)
    guide, nuts = torch.randn(400, 3) * torch.tensor([1.0, 3.0, 1.0]), torch.randn(300, 3) + 5
    figure = plot.guide_against_nuts(guide, nuts)
    (axes,) = figure.axes
    assert [len(dots.get_offsets()) for dots in axes.collections] == [400, 300]
    assert legend(axes) == ["guide", "NUTS"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "z[1]")
    half, most, *_ = axes.lines
    points = guide[:, :2].double().numpy()
    for line, mass in ((half, 0.5), (most, 0.95)):
        offset = np.stack(line.get_data()) - points.mean(0)[:, None]
        distance = np.einsum("in,ij,jn->n", offset, np.linalg.inv(np.cov(points.T)), offset)
        np.testing.assert_allclose(distance, -2 * np.log(1 - mass), rtol=1e-5)


def test_guide_against_nuts_in_one_dimension_is_two_histograms():
    (axes,) = plot.guide_against_nuts(torch.randn(400), torch.randn(300), names=["z"]).axes
    assert len(axes.patches) == 2
    assert axes.get_xlabel() == "z"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.ppc(torch.zeros(2), torch.zeros(5)), r"observed: got shape \(2,\), expected one number"),
        (lambda: plot.ppc(0.0, torch.zeros(0)), r"replicated: got shape \(0,\), expected one dimension, not empty"),
        (lambda: plot.ppc(0.0, torch.zeros(5, 2)), r"replicated: got shape \(5, 2\)"),
        (lambda: plot.ppc(float("nan"), torch.zeros(5)), "observed: got 1 nan"),
        (lambda: plot.sbc_ecdf(uniform(5, 9), np.ones(10), np.ones(9)), r"low, high: got shapes \(10,\) and \(9,\)"),
        (lambda: plot.sbc_ecdf(uniform(50, 9), np.ones(9), np.ones(9)), "expected integers from 0 to 8"),
        (lambda: plot.sbc_ecdf(torch.ones(5), np.ones(9), np.ones(9)), "ranks: got values of type float32"),
        (lambda: plot.sbc_ecdf(-torch.ones(5).long(), np.ones(9), np.ones(9)), "from -1 to -1, expected"),
        (lambda: plot.sbc_ecdf(uniform(5, 9, 2), np.ones(10), np.ones(10), names=["z"]), "names: got 1, .* of 2"),
        (lambda: plot.rank_histogram(uniform(5, 9, 25), 9), "ranks: got 25 dimensions, expected at most 24"),
        (lambda: plot.rank_histogram(uniform(5, 9), 9, num_bins=0), "num_bins: got 0, expected a whole number >= 1"),
        (lambda: plot.rank_histogram(torch.zeros(5, 2, 2).long(), 9), r"ranks: got shape \(5, 2, 2\)"),
        (lambda: plot.guide_against_nuts(torch.zeros(5, 2), torch.zeros(5)), r"got shapes \(5, 2\) and \(5, 1\)"),
        (lambda: plot.guide_against_nuts(torch.zeros(5), torch.zeros(1)), "s and t at least 2"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
