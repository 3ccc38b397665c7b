import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from ppvae import plot


def image_of(figure):
    """The one array of a figure that has one axes and one image."""
    (axes,) = figure.axes
    (image,) = axes.images
    assert image.get_interpolation() == "nearest"
    return np.asarray(image.get_array())


def texts(labels):
    return [label.get_text() for label in labels]


def random_images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 1, 5, 4)])
def test_samples_puts_every_pixel_in_its_place(shape):
    images = random_images(*shape)
    image = image_of(plot.samples(images))
    assert image.shape == (3 * 5 + 2, 3 * 4 + 2, 4)  # 7 images: 3 by 3, gaps of one pixel
    filled = np.zeros(image.shape[:2], bool)
    for i, original in enumerate(images.reshape(7, 5, 4).numpy()):
        place = np.s_[i // 3 * 6 : i // 3 * 6 + 5, i % 3 * 5 : i % 3 * 5 + 4]
        np.testing.assert_array_equal(image[place][..., :3], np.stack([original] * 3, axis=-1))
        filled[place] = True
    np.testing.assert_array_equal(image[..., 3], filled)  # gaps and unused places are transparent


def test_samples_keeps_colours():
    images = random_images(2, 3, 6, 6)
    image = image_of(plot.samples(images, num_columns=1))
    assert image.shape == (13, 6, 4)
    np.testing.assert_array_equal(image[7:, :, :3], images[1].permute(1, 2, 0))


def test_samples_clips_and_takes_numpy_integers_and_booleans():
    image = image_of(plot.samples(np.array([[[-1.0, 0.5, 1e300]]])))
    np.testing.assert_array_equal(image[0, :, 0], [0, 0.5, 1])
    for dtype in (bool, np.uint8):
        image = image_of(plot.samples(np.array([[[0, 1]]], dtype=dtype)))
        np.testing.assert_array_equal(image[0, :, 0], [0, 1])


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (12, 3, 4), (100, 10, 10)])
def test_the_default_grid_is_near_square(n, rows, columns):
    image = image_of(plot.samples(torch.zeros(n, 8, 8)))
    assert image.shape[:2] == (9 * rows - 1, 9 * columns - 1)


@pytest.mark.parametrize(("n", "side"), [(1, 8), (5, 28), (9, 28), (30, 17), (90, 28), (3, 64)])
def test_a_saved_picture_shows_each_pixel_as_a_square_of_equal_dots(n, side):
    figure = plot.reconstructions(random_images(n, side, side), torch.zeros(n, side, side), num_columns=9)
    image, file = image_of(figure), io.BytesIO()
    figure.savefig(file, dpi=200)
    saved = imread(io.BytesIO(file.getvalue()))[..., :3]
    box = figure.axes[0].get_window_extent()
    scale = round(box.width / image.shape[1])
    over_white = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    expected = np.kron(over_white, np.ones((scale, scale, 1)))
    top, left = saved.shape[0] - round(box.y1), round(box.x0)
    actual = saved[top : top + expected.shape[0], left : left + expected.shape[1]]
    inside = np.kron(image[..., 3], np.ones((scale, scale))) > 0
    np.testing.assert_allclose(actual[inside], expected[inside], atol=1.01 / 255)


@pytest.mark.parametrize(("n", "side"), [(1, 8), (5, 28), (7, 17)])
def test_a_hairline_lies_around_each_image_and_covers_none_of_it(n, side):
    figure, file = plot.samples(torch.ones(n, side, side), num_columns=3), io.BytesIO()
    image = image_of(figure)
    figure.savefig(file, dpi=200)
    saved = imread(io.BytesIO(file.getvalue()))[..., :3].mean(-1)
    box = figure.axes[0].get_window_extent()
    scale = round(box.width / image.shape[1])
    top, left = saved.shape[0] - round(box.y1), round(box.x0)
    rows, columns = np.where(saved < 0.7)
    dots, step = side * scale, (side + 1) * scale  # white images on white: all that is dark are the frames
    expected = set()
    for i in range(n):
        y, x = top + i // 3 * step, left + i % 3 * step
        expected |= {(y + a, x + b) for a in (-1, dots) for b in range(-1, dots + 1)}
        expected |= {(y + a, x + b) for b in (-1, dots) for a in range(-1, dots + 1)}
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_interpolation_stands_between_its_images():
    rows, ends = random_images(2, 5, 8, 8), (random_images(2, 8, 8), random_images(2, 1, 8, 8))
    figure = plot.interpolation(rows, ends)
    image = image_of(figure)
    assert image.shape[:2] == (17, 8 + 3 + 5 * 9 - 1 + 3 + 8)
    np.testing.assert_allclose(image[:8, :8, 0], ends[0][0], atol=1e-6)
    np.testing.assert_allclose(image[9:, -8:, 0], ends[1][1, 0], atol=1e-6)
    np.testing.assert_allclose(image[:8, 11:19, 0], rows[0, 0], atol=1e-6)
    assert (image[:, 8:11, 3] == 0).all()
    ticks = dict(
        zip([t.get_text() for t in figure.axes[0].get_xticklabels()], figure.axes[0].get_xticks(), strict=True)
    )
    assert ticks == {"x": 3.5, "0": 14.5, "1": 14.5 + 36, "x′": image.shape[1] - 4.5}
    with pytest.raises(ValueError, match=r"ends\[1\]: got 3 images of \(8, 8\), expected one for each path"):
        plot.interpolation(rows, (ends[0], random_images(3, 8, 8)))


def test_reconstructions_come_in_pairs_of_rows():
    x, x_mean = random_images(5, 1, 8, 8), random_images(5, 8, 8) / 2
    figure = plot.reconstructions(x, x_mean, num_columns=3)
    image = image_of(figure)
    pair, wide_gap = 2 * 8 + 1, 3
    assert image.shape == (2 * pair + wide_gap, 3 * 9 - 1, 4)
    np.testing.assert_array_equal(image[:8, 9:17, 0], x[1, 0])
    np.testing.assert_array_equal(image[9:17, 9:17, 0], x_mean[1])
    np.testing.assert_array_equal(image[20:28, 9:17, 0], x[4, 0])
    np.testing.assert_array_equal(image[29:37, 9:17, 0], x_mean[4])
    assert not image[pair : pair + wide_gap].any()
    assert texts(figure.axes[0].get_yticklabels()) == [r"$x$", r"$\mathrm{E}[x\,|\,z]$"] * 2
    np.testing.assert_array_equal(figure.axes[0].get_yticks(), [3.5, 12.5, 23.5, 32.5])


def test_reconstructions_of_a_few_are_no_wider_than_they_need():
    assert image_of(plot.reconstructions(torch.zeros(2, 8, 8), torch.ones(2, 8, 8))).shape == (17, 17, 4)


def test_interpolation_has_a_row_per_path_and_names_the_ends():
    rows = random_images(2, 5, 3, 8, 8)
    figure = plot.interpolation(rows)
    image = image_of(figure)
    assert image.shape == (17, 44, 4)
    np.testing.assert_array_equal(image[9:, 18:26, :3], rows[1, 2].permute(1, 2, 0))
    assert texts(figure.axes[0].get_xticklabels()) == ["0", "1"]
    np.testing.assert_array_equal(figure.axes[0].get_xticks(), [3.5, 39.5])
    np.testing.assert_array_equal(image_of(plot.interpolation(rows[:, :, 0]))[..., 0], image[..., 0])


def test_traversal_names_dimensions_and_values():
    images = random_images(2, 5, 1, 8, 8)
    figure = plot.traversal(images, torch.linspace(-3, 3, 5))
    (axes,) = figure.axes
    np.testing.assert_array_equal(image_of(figure)[9:, 36:, 0], images[1, 4, 0])
    assert texts(axes.get_yticklabels()) == ["z[0]", "z[1]"]
    named = plot.traversal(images, torch.linspace(-3, 3, 5), units=[11, 4])
    assert texts(named.axes[0].get_yticklabels()) == ["z[11]", "z[4]"]
    assert texts(axes.get_xticklabels()) == ["−3", "−1.5", "0", "1.5", "3"]
    np.testing.assert_array_equal(axes.get_xticks(), [3.5, 12.5, 21.5, 30.5, 39.5])
    np.testing.assert_array_equal(axes.get_yticks(), [3.5, 12.5])
    assert axes.get_xlabel() == "prior standard deviations"


def test_by_condition_puts_the_datum_before_its_row():
    images, x = random_images(2, 3, 1, 8, 8), random_images(2, 8, 8) / 2
    figure = plot.by_condition(images, labels=["0", "1", "2"], x=x)
    image = image_of(figure)
    assert image.shape == (17, 4 * 9 - 1, 4)
    for row in range(2):
        np.testing.assert_array_equal(image[9 * row : 9 * row + 8, :8, 0], x[row])
        for column in range(3):
            left = 9 * (column + 1)
            np.testing.assert_array_equal(image[9 * row : 9 * row + 8, left : left + 8, 0], images[row, column, 0])
    assert texts(figure.axes[0].get_xticklabels()) == ["x", "0", "1", "2"]
    np.testing.assert_array_equal(figure.axes[0].get_xticks(), [3.5, 12.5, 21.5, 30.5])
    assert texts(figure.axes[0].get_yticklabels()) == []


def test_many_points_under_few_conditions_lie_wide():
    images, x = random_images(8, 2, 1, 5, 5), random_images(8, 1, 5, 5)
    wide = plot.by_condition(images, labels=["z1", "z2"], x=x).axes[0]
    assert [label.get_text() for label in wide.get_yticklabels()] == ["x", "z1", "z2"]
    assert list(wide.get_xticks()) == []
    rows = torch.stack([x, images[:, 0], images[:, 1]], 1)
    same = plot.by_condition(rows.transpose(0, 1), labels=[""] * 8).axes[0]
    np.testing.assert_array_equal(wide.images[0].get_array(), same.images[0].get_array())


def test_by_condition_without_data_and_in_colour():
    images = random_images(2, 3, 3, 8, 8)
    figure = plot.by_condition(images, labels=("cat", "dog", "horse"))
    image = image_of(figure)
    assert image.shape == (17, 26, 4)
    np.testing.assert_array_equal(image[9:, 18:, :3], images[1, 2].permute(1, 2, 0))
    assert texts(figure.axes[0].get_xticklabels()) == ["cat", "dog", "horse"]
    grey = plot.by_condition(images, labels="abc", x=images[:, 0, :1])  # grey data of coloured images
    assert image_of(grey).shape == (17, 35, 4)


@pytest.mark.parametrize(("steps", "expected"), [(33, [-4.25, 0, 4.25]), (38, [-4.25, 4.25])])
def test_traversal_labels_as_many_columns_as_have_room_evenly(steps, expected):
    figure = plot.traversal(torch.zeros(1, steps, 28, 28), torch.linspace(-4.25, 4.25, steps))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    labels = [float(text.replace("−", "-")) for text in texts(axes.get_xticklabels())]
    assert set(expected) <= set(labels)
    np.testing.assert_allclose(labels, np.linspace(-4.25, 4.25, len(labels)), atol=0.006)
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert boxes[-1].x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.samples(torch.zeros(8, 8)), r"images: got shape \(8, 8\), expected \(n, h, w\)"),
        (lambda: plot.samples(torch.zeros(2, 8, 8, 3)), r"images: got shape \(2, 8, 8, 3\)"),
        (lambda: plot.samples(torch.zeros(0, 8, 8)), r"images: got shape \(0, 8, 8\)"),
        (
            lambda: plot.samples(torch.full((1, 2, 2), 255)),
            r"images: got integers up to 255, expected .*\[0, 1\]",
        ),
        (lambda: plot.samples(torch.full((1, 2, 2), torch.nan)), "images: got 4 nan or infinite"),
        (
            lambda: plot.samples(torch.zeros(1, 2, 2), num_columns=0),
            "num_columns: got 0, expected a whole number >= 1",
        ),
        (
            lambda: plot.reconstructions(torch.zeros(3, 8, 8), torch.zeros(2, 8, 8)),
            r"x_mean: got shape \(2, 8, 8\), expected that of x, \(3, 8, 8\)",
        ),
        (lambda: plot.reconstructions(torch.zeros(3, 8, 8), torch.zeros(64)), r"x_mean: got shape \(64,\)"),
        (lambda: plot.interpolation(torch.zeros(3, 8, 8)), r"rows: got shape .* expected \(r, steps, h, w\)"),
        (lambda: plot.interpolation(torch.zeros(3, 1, 8, 8)), "rows: got 1 step, expected at least 2"),
        (lambda: plot.traversal(torch.zeros(3, 1, 8, 8), torch.zeros(1)), "images: got 1 step"),
        (lambda: plot.traversal(torch.zeros(3, 5, 8, 8), torch.zeros(5), units=[0]), "units: got 1, expected one per"),
        (
            lambda: plot.traversal(torch.zeros(3, 5, 8, 8), torch.zeros(4)),
            r"values: got shape \(4,\), expected one value per step, \(5,\)",
        ),
        (
            lambda: plot.by_condition(torch.zeros(3, 8, 8), labels="abc"),
            r"images: got shape .* expected \(r, c, h, w\)",
        ),
        (
            lambda: plot.by_condition(torch.zeros(2, 3, 8, 8), labels=["0", "1"]),
            "labels: got 2, expected one per column, 3",
        ),
        (
            lambda: plot.by_condition(torch.zeros(2, 3, 8, 8), labels="abc", x=torch.zeros(3, 8, 8)),
            "x: got 3 images .*, expected one for each row of images",
        ),
        (
            lambda: plot.by_condition(torch.zeros(2, 3, 8, 8), labels="abc", x=torch.zeros(2, 8, 7)),
            r"x: got 2 images of \(8, 7\), expected one for each row of images",
        ),
        (
            lambda: plot.by_condition(torch.zeros(2, 3, 8, 8), labels="abc", x=torch.full((2, 8, 8), torch.nan)),
            "x: got 128 nan or infinite",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_samples_stand_to_the_right_of_data():
    data, drawn = torch.zeros(5, 1, 4, 6), torch.ones(5, 1, 4, 6)
    figure = plot.samples_beside_data(drawn, data, num_columns=3)
    (axes,) = figure.axes
    image = axes.images[0].get_array()
    assert image.shape == (2 * 5 - 1, 2 * (3 * 7 - 1) + 3, 4)  # two rows, a gap of three pixels between the grids
    assert float(image[0, :20:7, 0].max()) == 0
    assert float(image[0, 23::7, 0].min()) == 1
    assert float(image[-1, 14:20, 3].max()) == 0  # of the sixth image there is none
    assert [label.get_text() for label in axes.get_xticklabels()] == ["data", "samples"]
    assert axes.get_xticks().tolist() == [9.5, 32.5]
    with pytest.raises(ValueError, match=r"data: got shape \(4, 4, 6\), expected that of images, \(5, 4, 6\)"):
        plot.samples_beside_data(drawn[:, 0], data[:4, 0])
