import math

import numpy as np
import pytest
import torch

from ppvae import plot

KL = "KL divergence"


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def legend(axes):
    return axes.get_legend() and [text.get_text() for text in axes.get_legend().get_texts()]


def full_history(epochs=20):
    return [
        {
            "epoch": i,
            "loss": 100.0,
            "elbo": -100.0 - 50 / i,
            "reconstruction": -80.0 - 50 / i,
            "kl_z1": 15.0,
            "kl_z2": 5.0,
            "kl_weight": min(1.0, i / 10),
            "lr": 1e-3,
            "valid_elbo": -110.0 if i % 5 == 0 else None,
        }
        for i in range(1, epochs + 1)
    ]


def test_each_column_is_drawn_in_its_panel():
    figure = plot.training_curves(full_history())
    assert list(panels(figure)) == ["ELBO", "reconstruction", KL]
    elbo, reconstruction, kl = panels(figure).values()
    np.testing.assert_allclose(lines(elbo)["train"], [(i, -100 - 50 / i) for i in range(1, 21)])
    np.testing.assert_allclose(lines(elbo)["valid"], [(i, -110) for i in (5, 10, 15, 20)])
    np.testing.assert_allclose(lines(reconstruction)["train"][-1], (20, -82.5))
    assert list(lines(kl)) == ["$z_{1}$", "$z_{2}$"]
    assert [legend(axes) for axes in (elbo, reconstruction, kl)] == [
        ["train", "valid"],
        None,
        list(lines(kl)),
    ]
    assert [axes.get_ylabel() for axes in (elbo, reconstruction, kl)] == ["nats per datum", "", ""]


def test_the_loss_has_a_panel_where_it_is_validated():
    """As with deterministic codes, which have no ELBO."""
    history = [{"epoch": i, "loss": 10.0 / i, "reconstruction": -9.0 / i, "valid_loss": 12.0 / i} for i in (1, 2, 3)]
    figure = plot.training_curves(history)
    assert list(panels(figure)) == ["reconstruction", "loss"]
    np.testing.assert_allclose(lines(panels(figure)["loss"])["valid"], [(1, 12), (2, 6), (3, 4)])


def test_the_weight_of_the_kl_is_dashed_on_a_twin_axis():
    *_, kl, twin = plot.training_curves(full_history()).axes
    assert twin.get_ylabel() == "KL weight"
    (line,) = twin.lines
    assert line.get_linestyle() == "--"
    np.testing.assert_allclose(line.get_ydata(), np.minimum(1, np.arange(1, 21) / 10))
    zeros = [axes.transData.transform((0, 0))[1] for axes in (kl, twin)]
    assert zeros[0] == pytest.approx(zeros[1])


@pytest.mark.parametrize(("weight", "num_axes"), [(1.0, 1), (None, 1), (0.5, 2), (0.0, 2)])
def test_a_weight_of_one_throughout_is_not_drawn(weight, num_axes):
    figure = plot.training_curves([{"kl_z": 1.0, "kl_weight": weight}] * 3)
    assert len(figure.axes) == num_axes


def test_panels_without_data_are_dropped():
    history = [{"elbo": -1.0, "reconstruction": None, "kl_z": math.nan, "kl_weight": 0.5}] * 3
    assert list(panels(plot.training_curves(history))) == ["ELBO"]
    assert list(panels(plot.training_curves([{"valid_reconstruction": -1.0}]))) == ["reconstruction"]


def test_missing_values_are_passed_over_and_epochs_counted_from_one():
    history = [{"elbo": -3.0}, {"elbo": None}, {}, {"elbo": math.inf}, {"elbo": torch.tensor(-1.0)}]
    (axes,) = plot.training_curves(history).axes
    np.testing.assert_array_equal(lines(axes)["train"], [(1, -3), (5, -1)])
    assert axes.lines[0].get_marker() == "o"


def test_an_early_transient_runs_out_of_the_panel():
    values = [-1e6, -5000.0] + [-100.0 + i / 10 for i in range(38)]
    (axes,) = plot.training_curves([{"elbo": value} for value in values]).axes
    low, high = axes.get_ylim()
    assert -101 < low < values[4]
    assert values[-1] < high < -96


def test_a_late_collapse_stays_in_view():
    (axes,) = plot.training_curves([{"elbo": -100.0}] * 39 + [{"elbo": -1e6}]).axes
    assert axes.get_ylim()[0] < -1e6


@pytest.mark.parametrize("values", [[-100.0], [-200.0, -100.0], [0.0, 0.0], [-120, -110, -105, -103, -102, -101]])
def test_short_and_flat_curves_are_wholly_in_view(values):
    (axes,) = plot.training_curves([{"elbo": value} for value in values]).axes
    low, high = axes.get_ylim()
    assert low < min(values) <= max(values) < high


def test_a_kl_is_read_against_zero():
    (axes,) = plot.training_curves([{"kl_z": 20.0 + i} for i in range(5)]).axes
    assert axes.get_ylim()[0] < 0


def test_many_sites_and_names_of_any_kind_are_told_apart():
    row = {f"kl_z{i}": float(i) for i in range(12)} | {"kl_z": 1.0, "kl_local_scale": 2.0, "kl__joint": 3.0}
    (axes,) = plot.training_curves([row] * 3).axes
    assert legend(axes)[-4:] == ["$z_{11}$", "$z$", "local_scale", "joint"]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 15


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], r"history: got 0 rows with values in columns \[\], expected"),
        (
            [{"epoch": 1, "loss": 2.0, "kl_weight": 1.0}],
            r"\['epoch', 'kl_weight', 'loss'\], expected values in one of elbo",
        ),
        (
            [{"elbo": 1.0}, {"elbo": "low"}],
            "history: got 'low' in row 1, column 'elbo', expected a number or None",
        ),
    ],
)
def test_bad_input_is_named(history, message):
    with pytest.raises(ValueError, match=message):
        plot.training_curves(history)


def test_runs_are_compared_on_one_panel():
    long, short = full_history(), full_history(4)
    (axes,) = plot.compare_curves({"VAE": long, "IWAE": short}).axes
    assert (axes.get_xscale(), axes.get_ylabel(), legend(axes)) == ("log", "elbo, nats per datum", ["VAE", "IWAE"])
    np.testing.assert_allclose(lines(axes)["IWAE"], [(i, -100 - 50 / i) for i in range(1, 5)])
    assert len(lines(axes)["VAE"]) == 20
    low, high = axes.get_ylim()
    assert low < -100 - 50 / 3  # all but the first tenth of the long run is in view
    assert high > -102.5
    (axes,) = plot.compare_curves({"VAE": long}, "kl_z1", unit="").axes
    assert axes.get_ylabel() == "kl_z1"
    (axes,) = plot.compare_curves({"VAE": long}, "kl_z1").axes
    assert legend(axes) is None


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ({}, "got none"),
        ({"a": full_history(), "b": [{"loss": 1.0}]}, r"got 'elbo', expected one with values in 'b', of \['loss'\]"),
    ],
)
def test_runs_that_cannot_be_compared(histories, message):
    with pytest.raises(ValueError, match=message):
        plot.compare_curves(histories)


def test_the_epoch_whose_weights_are_kept_is_marked_and_the_unit_stands_once():
    history = [{"epoch": i + 1, "elbo": -10.0, "valid_elbo": e, "kl_z": 1.0} for i, e in enumerate((-12, -9, -11))]
    first, second = plot.training_curves(history).axes
    (mark,) = [line for line in first.lines if line.get_fillstyle() == "none"]
    assert [*mark.get_xdata(), *mark.get_ydata()] == [2.0, -9.0]
    assert (first.get_ylabel(), second.get_ylabel()) == ("nats per datum", "")


def test_a_run_of_one_epoch_has_its_points_in_the_middle():
    elbo, kl = plot.training_curves([{"epoch": 4, "elbo": -10.0, "kl_z": 1.0, "kl_weight": 0.5}]).axes  # no weight
    assert elbo.get_xlim() == kl.get_xlim() == (3.5, 4.5)
    assert elbo.get_xticks().tolist() == [4]


@pytest.mark.parametrize(("epochs", "ticks"), [(1, [1]), (9, [2, 4, 6, 8]), (300, [1, 10, 100])])
def test_epochs_that_are_compared_have_ticks_to_read(epochs, ticks):
    figure = plot.compare_curves({"VAE": [{"epoch": i, "elbo": -100 - 50 / i} for i in range(1, epochs + 1)]})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    shown = {text.get_text(): float(text.get_position()[0]) for text in axes.get_xticklabels()}
    assert [text for text, at in shown.items() if low <= at <= high] == [str(tick) for tick in ticks]
