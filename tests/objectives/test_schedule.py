import math

import pytest

import ppvae
from ppvae.objectives.schedule import Cosine, Cyclical, Linear, Sigmoid, Stages, as_schedule
from tests.infer.pairs import binary, small_vae


@pytest.mark.parametrize(("t", "value"), [(0, 0.0), (2.5, 0.25), (10, 1.0), (11, 1.0)])
def test_linear(t, value):
    assert Linear(10)(t) == value
    assert Linear(10, start=2.0, end=4.0)(t) == 2.0 + 2.0 * value


@pytest.mark.parametrize("t", [0.0, 7.0, 10.0, 12.5, 1e6])
def test_sigmoid(t):
    assert Sigmoid(10, 2, end=3.0)(t) == pytest.approx(3.0 / (1.0 + math.exp(-(t - 10) / 2)), rel=1e-12)
    assert Sigmoid(1e9, 1e-3)(t) == 0.0  # no overflow


@pytest.mark.parametrize(("t", "value"), [(0, 0.0), (1, 0.25), (4, 1.0), (7.9, 1.0), (8, 0.0), (18, 0.5)])
def test_cyclical(t, value):
    assert Cyclical(8, ramp=0.5)(t) == value
    assert Cyclical(8, ramp=0.5, start=1.0, end=3.0)(t) == 1.0 + 2.0 * value


@pytest.mark.parametrize(("t", "value"), [(0, 1.0), (5, 0.5), (10, 0.0), (20, 0.0)])
def test_cosine(t, value):
    assert Cosine(10, start=1.0)(t) == pytest.approx(value, abs=1e-15)
    assert Cosine(10, start=3.0, end=1.0)(t) == pytest.approx(1.0 + 2.0 * value)


def test_stages_of_burda_et_al():
    lr, start = Stages(3280, start=1e-3), 0
    for i in range(8):
        for t in (start, start + 0.5, start + 3**i - 1e-6):
            assert lr(t) == pytest.approx(1e-3 * 10 ** (-i / 7), rel=1e-12), (i, t)
        start += 3**i
    assert start == 3280
    assert lr(3280.0) == lr(1e6) == pytest.approx(1e-4)


@pytest.mark.parametrize(("t", "value"), [(0, 8.0), (0.99, 8.0), (1, 4.0), (2.99, 4.0), (3, 2.0), (7, 2.0)])
def test_stages(t, value):
    assert Stages(7, start=8.0, num_stages=3, growth=2.0, fall=4.0)(t) == value
    assert Stages(70, start=8.0, num_stages=3, growth=2.0, fall=4.0)(10 * t) == value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0), "epochs must be a finite number > 0, got 0"),
        (lambda: Linear(math.nan), "epochs must be a finite number > 0, got nan"),
        (lambda: Sigmoid(1, -1), "width must be a finite number > 0, got -1"),
        (lambda: Cyclical(-2), "period must be a finite number > 0, got -2"),
        (lambda: Cyclical(2, ramp=0.0), r"ramp must be a finite number > 0 and <= 1, got 0.0"),
        (lambda: Cosine(0, 1.0), "epochs must be a finite number > 0, got 0"),
        (lambda: Stages(0, 1.0), "epochs must be a finite number > 0, got 0"),
        (lambda: Stages(1, 1.0, growth=0), "growth must be a finite number > 0, got 0"),
        (lambda: Stages(1, 1.0, fall=-1), "fall must be a finite number > 0, got -1"),
        (lambda: Stages(1, 1.0, num_stages=1), "num_stages must be a whole number >= 2, got 1"),
        (lambda: as_schedule(-1.0, name="lr"), "lr must be a finite number >= 0, got -1.0"),
        (lambda: as_schedule(math.inf, name="lr"), "lr must be a finite number >= 0, got inf"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", ["0.1", True, None, [0.1]])
def test_bad_kinds(value):
    with pytest.raises(TypeError, match=f"kl_weight must be a number or a function.*{type(value).__name__}"):
        as_schedule(value, name="kl_weight")


def test_as_schedule():
    assert as_schedule(2, name="lr")(123.0) == 2.0
    assert as_schedule(Linear(4), name="lr")(1.0) == Linear(4)(1.0)
    assert repr(Linear(4)) == "Linear(epochs=4, start=0.0, end=1.0)"  # what a run's config says


@pytest.mark.parametrize("schedule", [Cyclical(2), Sigmoid(1, 0.5), Linear(3), Cosine(3, start=2.0)])
def test_fit_weighs_the_kl_term_by_any_of_them(schedule):
    run = ppvae.fit(small_vae(), binary(20), kl_weight=schedule, epochs=4, batch_size=20, progress=False)
    for epoch, row in enumerate(run.history):  # of one step each
        assert row["kl_weight"] == pytest.approx(schedule(float(epoch)))
        assert row["loss"] == pytest.approx(row["kl_weight"] * row["kl_z"] - row["reconstruction"], rel=1e-5)
