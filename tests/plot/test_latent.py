import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ppvae import plot
from ppvae.plot.figure import PALETTE


def drawn(figure):
    """The points of the scatter, and their colours, in the order of the first coordinate."""
    (dots,) = figure.axes[0].collections
    assert dots.get_rasterized()
    points, colours = np.asarray(dots.get_offsets()), [to_hex(colour) for colour in dots.get_facecolors()]
    order = points[:, 0].argsort()
    return points[order], [colours[i] for i in order]


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def random_points(n, k):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0))


def test_two_dimensions_are_drawn_as_they_are():
    z = random_points(50, 2)
    figure = plot.latent_scatter(z)
    points, colours = drawn(figure)
    np.testing.assert_allclose(points, z[z[:, 0].argsort()].numpy())
    assert set(colours) == {PALETTE[0]}
    (axes,) = figure.axes
    assert axes.get_aspect() == 1
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "z[1]")
    assert axes.get_legend() is None


def test_units_that_hold_nothing_are_left_out():
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    z[:, 2] *= 100  # of a unit that is not active
    active = torch.tensor([True, False, False, True])
    figure = plot.latent_scatter(z, active=active)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "z[3]")
    drawn = {tuple(point) for point in np.asarray(axes.collections[0].get_offsets()).tolist()}
    assert drawn == {tuple(point) for point in z[:, active].tolist()}
    three = plot.latent_scatter(z, active=torch.tensor([True, True, False, True])).axes[0]
    assert float(np.abs(three.collections[0].get_offsets()).max()) < 10
    assert plot.latent_scatter(z, active=torch.zeros(4, dtype=torch.bool)).axes[0].get_xlabel().startswith("principal")
    with pytest.raises(ValueError, match="active: got bool of shape"):
        plot.latent_scatter(z, active=active[:2])


def test_classes_are_named_where_their_points_lie():
    apart = [[-9.0, 0.0], [9.0, 0.0], [-8.0, 1.0], [8.0, 1.0], [8.0, -1.0]]  # two groups, none where their median lies
    dense = [[4.0, 4.0], [4.0, 4.5], [4.0, 5.0]]
    z, y = torch.tensor([[0.0, 9.0], *apart, *dense]), torch.tensor([3] + [8] * 8)
    texts = plot.latent_scatter(z, y).axes[0].texts
    assert [(text.get_text(), text.get_position()) for text in texts] == [("3", (0.0, 9.0)), ("8", (4.0, 4.25))]


def test_more_dimensions_are_projected_on_the_principal_components():
    z = torch.stack([torch.tensor([3.0, -3.0, 0, 0]), torch.tensor([0.0, 0, -1, 1]), torch.zeros(4)], dim=1) + 7.0
    figure = plot.latent_scatter(z[:, [2, 1, 0]])
    np.testing.assert_allclose(drawn(figure)[0][[0, 3]], [[-3, 0], [3, 0]], atol=1e-6)
    assert figure.axes[0].get_xlabel() == "principal component 1 (90% of variance)"
    assert figure.axes[0].get_ylabel() == "principal component 2 (10% of variance)"


def test_the_projection_keeps_its_sign_when_points_come_in_another_order():
    z = random_points(40, 6).double()
    np.testing.assert_allclose(drawn(plot.latent_scatter(z))[0], drawn(plot.latent_scatter(z.flip(0)))[0])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_points_or_equal_ones_are_drawn(n):
    assert len(drawn(plot.latent_scatter(torch.ones(n, 4)))[0]) == n


def test_labels_colour_the_points_and_name_the_classes_outside_the_axes():
    z, labels = random_points(30, 2), torch.arange(30) % 3 * 4 - 1
    figure = plot.latent_scatter(z, labels)
    assert legend_of(figure) == ["-1", "3", "7"]
    by_first = labels[z[:, 0].argsort()].tolist()
    assert drawn(figure)[1] == [PALETTE[(label + 1) // 4] for label in by_first]
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
    assert axes.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_classes_have_the_names_that_are_given_in_their_order():
    z, labels = random_points(6, 2), torch.tensor([7, 1, 1, 7, 1, 7])
    assert legend_of(plot.latent_scatter(z, labels, names=["1", "7."])) == ["1", "7."]
    with pytest.raises(ValueError, match="names: got 3 names, expected one for each of the 2 classes"):
        plot.latent_scatter(z, labels, names=["one", "seven", "nine"])


def test_long_names_hide_no_points():
    z, labels = random_points(6, 2), torch.tensor([7, 1, 1, 7, 1, 7])
    figure = plot.latent_scatter(z, labels, names=["one", "seven"])
    assert legend_of(figure) == ["a  one", "b  seven"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "b"]
    figure.draw_without_rendering()
    height = figure.axes[0].get_window_extent().height
    assert max(text.get_window_extent().width for text in figure.axes[0].texts) < height / 20


def test_more_than_ten_classes_have_a_colour_each():
    figure = plot.latent_scatter(random_points(50, 2), np.arange(50) % 25)
    assert len(legend_of(figure)) == 25
    assert len(set(drawn(figure)[1])) == 25


def test_booleans_are_classes():
    assert legend_of(plot.latent_scatter(random_points(4, 2), torch.tensor([True, False, True, True]))) == [
        "0",
        "1",
    ]


@pytest.mark.parametrize(
    ("z", "labels", "message"),
    [
        (torch.zeros(5), None, r"z: got shape \(5,\), expected \(n, k\)"),
        (torch.zeros(5, 1), None, r"z: got shape \(5, 1\)"),
        (torch.zeros(0, 2), None, r"z: got shape \(0, 2\)"),
        (torch.full((5, 2), torch.inf), None, "z: got 10 nan or infinite"),
        (torch.zeros(5, 2), torch.zeros(4).long(), r"labels: got shape \(4,\), expected one .*\(5,\)"),
        (torch.zeros(5, 2), torch.zeros(5), "labels: got values of type float32, expected integers"),
    ],
)
def test_bad_input_is_named(z, labels, message):
    with pytest.raises(ValueError, match=message):
        plot.latent_scatter(z, labels)


def embedded(z, labels=None):
    """The points of the second panel, in the order of z."""
    figure = plot.latent_scatter(z, labels, tsne=True)
    _, right = figure.axes
    points = np.asarray(right.collections[0].get_offsets())
    return figure, points[np.random.default_rng(0).permutation(len(z)).argsort()]


def test_tsne_stands_beside_the_principal_components_and_keeps_neighbours_together():
    z = torch.cat([random_points(20, 5), random_points(20, 5) + torch.tensor([0.0, 0, 0, 30, 0])])
    figure, points = embedded(z, torch.arange(40) // 20)
    left, right = figure.axes
    np.testing.assert_allclose(
        np.asarray(left.collections[0].get_offsets()),
        np.asarray(plot.latent_scatter(z).axes[0].collections[0].get_offsets()),
    )
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag([np.inf] * 40)
    assert (distance.argmin(1) // 20 == np.arange(40) // 20).all()
    assert (right.get_xlabel(), list(right.get_xticks()), right.get_aspect()) == ("t-SNE", [], 1)
    assert right.get_legend() is not None
    assert left.get_legend() is None
    figure.draw_without_rendering()
    assert right.get_legend().get_window_extent().x1 <= figure.bbox.x1
    np.testing.assert_array_equal(points, embedded(z)[1])


@pytest.mark.parametrize("z", [random_points(30, 2), random_points(4, 5), torch.ones(1, 3)])
def test_there_is_no_tsne_of_a_plane_or_of_a_few_points(z):
    assert len(plot.latent_scatter(z, tsne=True).axes) == 1


@pytest.mark.parametrize("n", [5, 12])
def test_tsne_of_equal_points_is_drawn(n):
    assert np.isfinite(embedded(torch.ones(n, 4))[1]).all()


# The aggregated posterior against the prior, and the KL of each dimension.


def clouds(figure):
    """The points of each set by its name in the legend, and their colours."""
    return {
        dots.get_label(): (np.asarray(dots.get_offsets()), to_hex(dots.get_facecolors()[0]))
        for dots in figure.axes[0].collections
    }


def test_prior_and_posterior_are_drawn_in_the_same_plane():
    z, prior = random_points(30, 2), 3 * random_points(40, 2)
    drawn_sets = clouds(plot.aggregated_posterior(z, prior))
    np.testing.assert_allclose(drawn_sets["q(z)"][0], z)
    np.testing.assert_allclose(drawn_sets["p(z)"][0], prior)
    assert (drawn_sets["q(z)"][1], drawn_sets["p(z)"][1]) == (PALETTE[0], PALETTE[4])


def test_beyond_two_dimensions_both_are_projected_alike():
    z = torch.stack([torch.tensor([3.0, -3.0, 0, 0]), torch.tensor([0.0, 0, -1, 1]), torch.zeros(4)], dim=1) + 7.0
    figure = plot.aggregated_posterior(z, torch.tensor([[8.0, 9.0, 100.0]]))
    np.testing.assert_allclose(clouds(figure)["p(z)"][0], [[1, 2]], atol=1e-5)
    np.testing.assert_allclose(clouds(figure)["q(z)"][0][:2], [[3, 0], [-3, 0]], atol=1e-5)
    assert figure.axes[0].get_xlabel() == "principal component 1 (90% of variance)"


@pytest.mark.parametrize("shape", [(500,), (500, 1)])
def test_one_dimension_is_drawn_as_densities(shape):
    z = torch.randn(500, generator=torch.Generator().manual_seed(0))
    figure = plot.aggregated_posterior(0.5 * z.reshape(shape), z)
    prior, posterior = figure.axes[0].containers
    for bars, values in ((prior, z), (posterior, 0.5 * z)):
        assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1)
        mean = sum(bar.get_height() * bar.get_width() * (bar.get_x() + bar.get_width() / 2) for bar in bars)
        assert mean == pytest.approx(float(values.mean()), abs=0.05)
    assert legend_of(figure) == ["p(z)", "q(z)"]


def test_bars_fall_and_inactive_ones_are_grey():
    figure = plot.kl_per_dimension(torch.tensor([0.01, 1.5, 0.7]), torch.tensor([False, True, True]))
    (bars,) = figure.axes[0].containers
    assert [bar.get_height() for bar in bars] == pytest.approx([1.5, 0.7, 0.01])
    assert [to_hex(bar.get_facecolor()) for bar in bars] == [PALETTE[0], PALETTE[0], PALETTE[4]]
    assert figure.axes[0].get_title() == "2 of 3 units active"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "0"]
    assert not plot.kl_per_dimension(torch.rand(40)).axes[0].get_xticklabels()
    assert plot.kl_per_dimension(torch.rand(2, 3)).axes[0].get_title() == ""


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.aggregated_posterior(torch.zeros(0, 2), torch.zeros(3, 2)), r"z: got shape \(0, 2\)"),
        (lambda: plot.aggregated_posterior(torch.zeros(3, 2), torch.zeros(3, 2, 2)), r"prior: got shape \(3, 2, 2\)"),
        (lambda: plot.aggregated_posterior(torch.zeros(3, 2), torch.zeros(3, 4)), "prior: got 4 dim.*expected 2"),
        (lambda: plot.aggregated_posterior(torch.full((3, 2), torch.nan), torch.zeros(3, 2)), "z: got 6 nan"),
        (lambda: plot.kl_per_dimension(torch.zeros(0)), r"kl: got shape \(0,\)"),
        (lambda: plot.kl_per_dimension(torch.zeros(3), torch.ones(2)), r"active: got shape \(2,\).*\(3,\)"),
    ],
)
def test_bad_input_of_these_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
