import numpy as np
import pytest
import torch

from ppvae import plot


def test_rolls_share_their_keys_and_steps():
    data, drawn = torch.zeros(10, 88), torch.zeros(6, 88)
    data[3, 20], drawn[5, 23] = 1, 2.0
    figure = plot.rolls({"data": data, "drawn": drawn})
    above, below = (axes.images[0] for axes in figure.axes)
    assert [axes.get_ylabel() for axes in figure.axes] == ["data", "drawn"]
    assert above.get_array().shape == (4, 10)
    np.testing.assert_array_equal(above.get_array()[:, 3], [1, 0, 0, 0])
    np.testing.assert_array_equal(below.get_array()[:, 5], [0, 0, 0, 1])
    assert above.get_extent() == [0, 10, 40.5, 44.5]
    assert {axes.get_xlim() for axes in figure.axes} == {(0, 10)}


def test_silence_is_drawn_too():
    assert plot.rolls({"silence": torch.zeros(5, 12)}).axes[0].images[0].get_array().shape == (12, 5)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "got no roll"),
        ({"a": torch.zeros(5)}, r"expected \(steps, keys\)"),
        ({"a": torch.zeros(5, 3), "b": torch.zeros(5, 4)}, "as many keys"),
        ({"a": torch.full((5, 3), torch.nan)}, r"named\['a'\]"),
    ],
)
def test_wrong_rolls_are_named(named, message):
    with pytest.raises(ValueError, match=message):
        plot.rolls(named)
