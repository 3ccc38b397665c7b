"""Binarization and grey levels: exact on the grid, right on average, reproducible."""

import pytest
import torch

from ppvae.data import Batches, Binarize, Dequantize, binarize, dequantize, quantize

LEVELS = (2, 17, 256, 65536)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_dynamic_binarization_is_fresh_and_right_on_average():
    x = torch.tensor([[0.0, 0.1, 0.5, 0.9, 1.0]]).expand(100, 5)
    batches = Batches(x, torch.arange(100), batch_size=100, transform=Binarize())
    epochs = torch.stack([next(batches.epoch(index))[0] for index in range(100)])
    assert not torch.equal(epochs[0], epochs[1])
    assert epochs.unique().tolist() == [0.0, 1.0]
    mean, p = epochs.mean((0, 1)), x[0]
    assert mean[0] == 0
    assert mean[-1] == 1
    # 10,000 draws: five standard errors.
    assert ((mean - p).abs() <= 5 * (p * (1 - p) / 10_000).sqrt()).all()


def test_binarize_leaves_the_other_tensors_and_the_dtype():
    x, y = torch.rand(6, 2, generator=generator(), dtype=torch.float64), torch.arange(6)
    pixels, labels = Binarize()(generator(), x, y)
    assert labels is y
    assert pixels.dtype == x.dtype
    assert pixels.shape == x.shape


def test_static_binarization_is_a_function_of_values_and_seed():
    x = torch.rand(50, 4, generator=generator())
    torch.manual_seed(1)
    first = binarize(x)
    state = torch.get_rng_state()
    assert torch.equal(first, binarize(x, seed=0))
    # The layout in memory is no value.
    assert torch.equal(first, binarize(x.t().contiguous().t()))
    assert not torch.equal(first, binarize(x, seed=1))
    assert torch.equal(state, torch.get_rng_state())
    assert binarize(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
    many = binarize(torch.full((100_000,), 0.3))
    assert abs(many.mean().item() - 0.3) < 5 * (0.3 * 0.7 / 100_000) ** 0.5
    assert binarize(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_static_binarization_is_the_same_on_a_gpu():
    x = torch.rand(50, 4, generator=generator())
    assert torch.equal(binarize(x), binarize(x.cuda()).cpu())


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_grey_levels_survive_the_round_trip(levels, dtype):
    k = torch.arange(min(levels, torch.iinfo(dtype).max + 1), dtype=dtype)
    x = dequantize(k, levels)
    assert x.dtype == torch.float32
    assert (x.min(), x.max() <= 1) == (0, True)
    assert quantize(x, levels).dtype == torch.int64
    assert torch.equal(quantize(x, levels), k.long())


def test_quantize_rounds_to_the_nearest_level():
    assert quantize(torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 1.0]), 3).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("levels", LEVELS[:3])
def test_dequantized_pixels_fill_their_bins_and_stay_below_one(levels):
    k = torch.arange(levels).repeat_interleave(5_000)
    (y,) = Dequantize(levels)(generator(), dequantize(k, levels))
    assert y.min() >= 0
    assert y.max() < 1
    assert torch.equal((y.double() * levels).floor().long(), k)
    u = (y.double() * levels - k).reshape(levels, -1)
    # Uniform in each bin: mean 1/2 and variance 1/12, within six standard errors.
    assert ((u.mean(1) - 1 / 2).abs() < 6 * (1 / 12 / 5_000) ** 0.5).all()
    assert ((u.var(1) - 1 / 12).abs() < 6 * (1 / 180 / 5_000) ** 0.5).all()


def test_the_greatest_noise_stays_in_its_bin(monkeypatch):
    def greatest(shape, *, dtype, **_):
        return torch.full(shape, 1 - torch.finfo(dtype).eps / 2, dtype=dtype)

    monkeypatch.setattr(torch, "rand", greatest)
    for levels in (*range(2, 300), 65536):
        k = torch.arange(levels)
        (y,) = Dequantize(levels)(generator(), dequantize(k, levels))
        assert y.max() < 1
        assert torch.equal((y.double() * levels).floor().long(), k)


def test_dequantize_leaves_the_other_tensors_and_is_fresh_every_epoch():
    batches = Batches(torch.zeros(5, 2), torch.arange(5), batch_size=5, transform=Dequantize(256), shuffle=False)
    (a, y), (b, _) = next(batches.epoch(0)), next(batches.epoch(1))
    assert y.tolist() == [0, 1, 2, 3, 4]
    assert not torch.equal(a, b)
    assert torch.equal(a, next(batches.epoch(0))[0])


@pytest.mark.parametrize("function", [binarize, lambda x: quantize(x, 256), Binarize().check, Dequantize(256).check])
@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([0.5], TypeError, "must be a torch.Tensor, got list"),
        (torch.tensor([0, 1]), TypeError, r"must hold floating intensities in \[0, 1\], got torch.int64"),
        (torch.tensor([0.5, -0.25, 3.0]), ValueError, r"must lie in \[0, 1\], got values from -0.25 to 3"),
        (torch.tensor([0.5, torch.nan]), ValueError, r"must lie in \[0, 1\], got values from nan to nan"),
    ],
)
def test_what_is_no_intensity_is_named(function, x, error, match):
    with pytest.raises(error, match=match):
        function(x)


@pytest.mark.parametrize(
    ("k", "levels", "error", "match"),
    [
        (torch.tensor([0, 17]), 17, ValueError, "k must lie in 0..16, got values from 0 to 17"),
        (torch.tensor([-1, 3]), 17, ValueError, "k must lie in 0..16, got values from -1 to 3"),
        (torch.tensor([0.0]), 17, TypeError, "k must hold integer grey levels, got torch.float32"),
        (3, 17, TypeError, "k must be a torch.Tensor, got int"),
        (torch.tensor([0]), 1, ValueError, "levels must be a whole number >= 2, got 1"),
        (torch.tensor([0]), 17.0, ValueError, "levels must be a whole number .* got 17.0"),
    ],
)
def test_what_is_no_grey_level_is_named(k, levels, error, match):
    with pytest.raises(error, match=match):
        dequantize(k, levels)


def test_dequantize_refuses_the_wrong_number_of_levels():
    x = dequantize(torch.arange(17), 17)
    Dequantize(17).check(x)
    with pytest.raises(ValueError, match=r"must hold k / 255 for k = 0..255, got 0.0625; is levels=256 right"):
        Dequantize(256).check(x)
    with pytest.raises(TypeError, match=r"must be float32 or float64, got torch\.float16"):
        Dequantize(17).check(x.half())
    with pytest.raises(ValueError, match="levels must be a whole number >= 2, got 0"):
        Dequantize(0)


def test_a_bad_seed_is_named():
    with pytest.raises(ValueError, match="seed must be a whole number >= 0, got -3"):
        binarize(torch.zeros(2), seed=-3)
