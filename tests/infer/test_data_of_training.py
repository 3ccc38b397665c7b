"""What training says of data that it cannot train on, before it does or where it meets them."""

import math

import pytest
import torch
from torch import nn

import ppvae
from ppvae.data import Batches
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.infer import NonFiniteError
from ppvae.infer.nonfinite import nonfinite_rows
from ppvae.models import PPCA, VAE
from ppvae.nn import MLP
from tests.infer.pairs import binary, small_vae, state

ONE = {"epochs": 1, "progress": False, "compile": False}


def poisoned(value, row=3):
    x = binary(8)
    x[row, 1] = value
    return x


def test_a_last_minibatch_of_one_datum_under_batch_norm_is_known_before_training():
    pair = small_vae(norm="batch")
    before = {name: value.clone() for name, value in state(pair).items()}
    for data, batch_size in ((binary(9), 8), (binary(4), 1), (binary(1), 8)):
        with pytest.raises(ValueError, match=r"train gives a minibatch of one datum, of which batch norm"):
            ppvae.fit(pair, data, batch_size=batch_size, **ONE)
    assert all(torch.equal(value, before[name]) for name, value in state(pair).items())
    ppvae.fit(pair, Batches(binary(9), batch_size=8, drop_last=True), **ONE)
    ppvae.fit(pair, binary(10), batch_size=8, **ONE)
    ppvae.fit(small_vae(norm="layer"), binary(9), batch_size=8, **ONE)


def test_what_is_missing_in_a_minibatch_is_no_fault_of_the_guide():
    with pytest.raises(NonFiniteError, match=r"train\[0\] holds NaN or infinite .* first in row 3 .* poutine.mask"):
        ppvae.fit(small_vae(), [binary(8), poisoned(math.nan)], **ONE)
    with pytest.raises(NonFiniteError, match=r"valid\[0\] holds NaN or infinite values in 1 rows"):
        ppvae.fit(small_vae(), binary(8), [binary(8), poisoned(math.inf)], **ONE)


def test_rows_are_counted_and_data_that_are_fine_are_no_cause():
    assert nonfinite_rows((binary(8), None, torch.arange(8)), "train") == ""
    assert nonfinite_rows(((binary(8),), (poisoned(math.nan, row=5),)), "train").startswith(
        "train.sets[1][0] holds NaN"
    )


@pytest.mark.parametrize(("scale", "shift"), [(1e3, 0.0), (1e-4, 0.0), (1.0, 1e4)])
def test_data_of_another_scale_under_a_location_and_a_scale_are_warned_of(scale, shift):
    x = scale * torch.randn(50, 8) + shift
    with pytest.warns(UserWarning, match=r"train\[0\] has the mean .* Standardize.of\(x\) of ppvae.distr"):
        ppvae.fit(PPCA(8, 2), x, **ONE)
    ppvae.fit(PPCA(8, 2), (x - x.mean(0)) / x.std(0), **ONE)


@pytest.mark.parametrize("evaluate", [ppvae.elbo, ppvae.log_marginal, ppvae.evaluate.latent_report])
def test_one_datum_without_its_batch_dim_is_named(evaluate):
    loose = VAE(StandardNormal(2), ConditionalNormal(MLP(2, (8,), (2, 3))), ConditionalNormal(Broadcasting()))
    for run in (
        lambda: evaluate(loose, torch.randn(3), num_samples=2),
        lambda: ppvae.fit(loose, torch.randn(3), **ONE),
    ):
        with pytest.raises(ValueError, match=r"must have a leading batch dim: site 'x' has 1 event dims"):
            run()


class Broadcasting(nn.Module):
    """A net that takes a datum's elements for data, as a sum over the last dim does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        return self.weight * x.sum(-1)[..., None, None]


def test_a_schedule_that_gives_no_number_later_names_its_argument():
    for name in ("lr", "kl_weight"):
        with pytest.raises(ValueError, match=rf"{name} must give finite numbers >= 0, got nan at epoch 0.5"):
            ppvae.fit(small_vae(), binary(16), batch_size=8, **ONE, **{name: lambda t: 0.1 if t < 0.5 else math.nan})
