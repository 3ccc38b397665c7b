from itertools import pairwise

import numpy as np
import pytest
import torch

from ppvae import plot


def test_columns_show_shares_of_levels_and_densities_of_numbers():
    data = [torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.linspace(0, 1, 50)]
    samples = [torch.tensor([0.0, 1.0]), torch.linspace(0, 2, 50)]
    levels, numbers = plot.columns_beside_data(data, samples, ["kind", "size"], [["a", "b", "a long name"], []]).axes
    assert [bar.get_height() for bar in levels.patches] == [0.5, 0.5, 0.0]
    np.testing.assert_array_equal(levels.lines[0].get_ydata(), [0.5, 0.25, 0.25])
    assert [text.get_text() for text in levels.get_xticklabels()] == ["a", "b", "a long n…"]
    assert numbers.get_title() == "size"
    bars = numbers.patches[:-1]
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1.0)


@pytest.mark.parametrize("high", [1, 7, 23, 100])
def test_bars_of_counts_hold_as_many_numbers_each(high):
    counts = torch.arange(high + 1.0)  # each number once: level, where no bar holds more numbers than another
    (axes,) = plot.columns_beside_data([counts], [counts], ["count"], [()]).axes
    *bars, _ = axes.patches  # and the outline of the data
    heights = [bar.get_height() for bar in bars[:-1]]  # the last may reach beyond the largest number
    assert len(bars) <= 25
    assert heights == pytest.approx([heights[0]] * len(heights))


def test_many_levels_are_numbered():
    levels = [f"level {k}" for k in range(25)]
    (axes,) = plot.columns_beside_data([torch.arange(25.0)], [torch.arange(25.0)], ["kind"], [levels]).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "3", "6", "9", "12", "15", "18", "21", "24"]


def test_names_of_levels_stand_apart():
    levels = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for names in (levels, levels[:3], ["a long name"] * 4):
        codes = torch.arange(len(names))
        figure = plot.columns_beside_data([codes] * 4, [codes] * 4, ["kind"] * 4, [names] * 4)
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
        assert len(boxes) == len(names)
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_intervals_that_miss_are_counted():
    truth = torch.tensor([0.0, 1.0, 2.0])
    figure = plot.filled_in(truth, truth - 1, truth, truth + torch.tensor([1.0, 1.0, -0.5]))
    assert figure.axes[0].get_title() == "2 of 3 intervals hold the truth"


def test_spread_leaves_out_columns_that_do_not_vary():
    x = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    axes = plot.spread_of_counts(x, x + torch.tensor([[1.0, 0.0], [0.0, 0.0]])).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(2.0, 1.0)])
    assert len(axes.lines[1].get_xydata()) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.columns_beside_data([], [], [], []), r"got \[0, 0, 0, 0\] columns"),
        (lambda: plot.columns_beside_data([[1.0]], [[1.0]], ["a", "b"], [()]), r"got \[1, 1, 2, 1\] columns"),
        (lambda: plot.columns_beside_data([[]], [[1.0]], ["a"], [()]), r"data of a: got shape \(0,\)"),
        (lambda: plot.filled_in([], [], [], []), "expected \\(m,\\) of all, m at least 1"),
        (lambda: plot.filled_in([1.0], [1.0], [1.0, 2.0], [1.0]), "truth, low, middle, high: got shapes"),
        (lambda: plot.spread_of_counts(torch.ones(3, 2), torch.ones(3, 2)), "of which some column varies"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
