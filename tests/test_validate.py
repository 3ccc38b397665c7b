"""Counts, seeds, numbers and devices are checked once; errors name the argument, what came and what was expected."""

import math

import numpy as np
import pytest
import torch

from ppvae._validate import check_count, check_number, check_seed, usable_device


@pytest.mark.parametrize("value", [3, np.int64(3)])
def test_a_count_comes_back_as_an_int(value):
    assert type(check_count("n", value)) is int
    assert check_count("n", 0, at_least=0) == check_seed(0) == 0


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None, math.nan, torch.tensor(1)])
def test_what_is_no_count_is_named(value):
    with pytest.raises(ValueError, match=r"^n must be a whole number >= 1, got "):
        check_count("n", value)


def test_a_number_comes_back_as_a_float():
    assert type(check_number("w", 1)) is float
    assert check_number("w", np.float32(0.5), above=0, below=1) == 0.5
    assert check_number("w", 1.0, at_least=1.0, at_most=1.0) == 1.0


@pytest.mark.parametrize(
    ("value", "bounds", "wanted"),
    [
        (0.0, {"above": 0}, "a finite number > 0, got 0.0"),
        (-1, {"at_least": 0}, "a finite number >= 0, got -1"),
        (1.0, {"above": 0, "below": 1}, "a finite number > 0 and < 1, got 1.0"),
        (2, {"above": 0, "at_most": 1}, "a finite number > 0 and <= 1, got 2"),
        (math.nan, {}, "a finite number, got nan"),
        (math.inf, {"above": 0}, "a finite number > 0, got inf"),
        (True, {}, "a finite number, got True"),
        ("1", {}, "a finite number, got '1'"),
    ],
)
def test_what_is_no_such_number_is_named(value, bounds, wanted):
    with pytest.raises(ValueError, match=f"^w must be {wanted}$"):
        check_number("w", value, **bounds)


def test_devices():
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device must be the CPU or a CUDA GPU, got 'meta'"):
        usable_device("meta")
    with pytest.raises(ValueError, match="device must be a torch device such as 'cpu' or 'cuda', got 'abacus'"):
        usable_device("abacus")
