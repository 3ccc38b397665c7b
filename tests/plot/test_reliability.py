import numpy as np
import pytest
import torch

from ppvae import plot

NAN = torch.nan


def test_bins_without_data_are_left_out():
    confidence, accuracy = torch.tensor([NAN, 0.3, NAN, 0.9]), torch.tensor([NAN, 0.5, NAN, 0.8])
    upper, lower = plot.reliability_diagram(confidence, accuracy, torch.tensor([0, 10, 0, 30])).axes
    diagonal, curve = upper.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [(0, 0), (1, 1)])
    np.testing.assert_allclose(curve.get_xydata(), [(0.3, 0.5), (0.9, 0.8)], rtol=1e-6)
    assert [bar.get_height() for bar in lower.patches] == [0, 0.25, 0, 0.75]
    assert [bar.get_x() for bar in lower.patches] == [0, 0.25, 0.5, 0.75]
    assert upper.get_title() == "calibration error 12.5%"  # (10 · 0.2 + 30 · 0.1) / 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5], [0.5], [0]), r"count: got shape \(1,\), sum 0, expected \(b,\) with some data"),
        (([0.5], [0.5], [[1]]), r"count: got shape \(1, 1\)"),
        (([0.5, 0.6], [0.5], [1]), r"confidence: got shape \(2,\), expected that of count, \(1,\)"),
        (([0.5], [[0.5]], [1]), r"accuracy: got shape \(1, 1\)"),
        (([50.0], [0.5], [1]), r"confidence: got values from 50 to 50, expected shares in \[0, 1\]"),
        (([0.5], [NAN], [1]), "accuracy: got 1 nan or infinite"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.reliability_diagram(*arguments)
