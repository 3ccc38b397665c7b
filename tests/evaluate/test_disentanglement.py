"""Disentanglement scores of codes whose scores are known, and against the definitions of disentanglement_lib."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import nn

from ppvae.distributions import ConditionalCategorical
from ppvae.evaluate import disentanglement, disentanglement_of_codes
from ppvae.evaluate.disentanglement import _codes
from ppvae.evaluate.disentanglement_scores import (
    Codes,
    _concentration,
    _modularity,
    mutual_information,
)
from ppvae.models import PPCA
from ppvae.nn import MLP

SIZES = (3, 6, 40, 32, 32)
NAMES = ("shape", "scale", "orientation", "x", "y")
OPTIONS = {"names": NAMES, "categorical": ["shape"], "num_repeats": 2}


def factors(n=10_000, sizes=SIZES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (n,), generator=generator) for size in sizes], 1)


def coded(v):
    """A dimension for each factor, with a little noise."""
    generator = torch.Generator().manual_seed(1)
    return v / v.amax(0) + 1e-3 * torch.randn(v.shape, generator=generator)


def rotated(z):
    q, _ = torch.linalg.qr(torch.randn(z.shape[1], z.shape[1], generator=torch.Generator().manual_seed(2)))
    return (z - z.mean(0)) @ q


@pytest.fixture(scope="module")
def perfect():
    return disentanglement_of_codes(coded(factors()), factors(), **OPTIONS)


def test_a_perfect_code_has_all_scores_of_one(perfect):
    assert perfect.scores().keys() == {
        "MIG",
        "SAP",
        "DCI disentanglement",
        "DCI completeness",
        "DCI informativeness",
        "β-VAE score",
        "FactorVAE score",
        "modularity",
    }
    for name, score in perfect.scores().items():
        assert 0.98 <= score.mean <= 1.0, name
        assert 0.0 <= score.std_error < 0.01, name
    assert perfect.gaps.min() > 0.98
    torch.testing.assert_close(perfect.information, torch.eye(5).double(), atol=0.03, rtol=0.0)


def test_the_order_of_dimensions_and_useless_ones_do_not_matter():
    v = factors(4000, (3, 5, 8))
    z = torch.cat([1e-3 * torch.randn(4000, 2), coded(v)[:, [2, 0, 1]]], 1)
    result = disentanglement_of_codes(z, v, categorical=["factor 0"], num_repeats=1)
    assert min(score.mean for score in result.scores().values()) > 0.97
    assert result.num_active == 3
    assert result.information.argmax(0).tolist() == [3, 4, 2]


def test_a_code_that_has_everything_twice_has_no_gap():
    v = factors(4000, (3, 5, 8))
    result = disentanglement_of_codes(torch.cat([coded(v), coded(v)], 1), v, num_repeats=1)
    assert result.mig.mean < 0.01
    assert result.sap.mean < 0.01
    assert result.disentanglement.mean > 0.98  # each dimension serves one factor,
    assert result.completeness.mean < 1 - 0.5 * math.log(2) / math.log(6)  # and each factor is served by two
    assert result.modularity.mean > 0.98


def test_noise_and_rotations_have_low_scores(perfect):
    v = factors(3000, (3, 6, 12))
    noise = disentanglement_of_codes(torch.randn(3000, 5), v, num_repeats=1)
    for name, score in noise.scores().items():
        chance = 1 / 3 if name in ("β-VAE score", "FactorVAE score") else 0.0
        assert score.mean < chance + 0.06, name
    turned = disentanglement_of_codes(rotated(coded(v)), v, num_repeats=1)
    for name in ("MIG", "SAP", "DCI disentanglement", "DCI completeness"):
        assert turned.scores()[name].mean < perfect.scores()[name].mean - 0.3, name
    assert turned.informativeness.mean > 0.5  # which no rotation takes away


def test_mutual_information_is_that_of_the_bins_less_chance():
    v = factors(3000, (3, 6)).numpy()
    z = np.random.default_rng(0).normal(size=(3000, 2)) + v
    share, gaps = mutual_information(z, v, 20)
    for i in range(2):
        binned = np.digitize(z[:, i], np.histogram(z[:, i], 20)[1][1:-1])
        for j in range(2):
            entropy = mutual_info_score(v[:, j], v[:, j])
            chance = (len(np.unique(binned)) - 1) * (len(np.unique(v[:, j])) - 1) / 6000
            expected = (mutual_info_score(v[:, j], binned) - chance) / (entropy - chance)
            assert share[i, j] == pytest.approx(max(0.0, expected), abs=1e-9)
    assert gaps == pytest.approx(np.sort(share, 0)[1] - np.sort(share, 0)[0])


def test_chance_is_that_of_independent_variables():
    """Without it, 10,000 data of noise would have information on a factor of 40 values."""
    v, rng = factors().numpy(), np.random.default_rng(0)
    noise = np.concatenate([mutual_information(rng.uniform(size=(10_000, 2)), v, 40)[0] for _ in range(3)])
    plain = mutual_info_score(v[:, 2], np.digitize(rng.uniform(size=10_000), np.linspace(0, 1, 41)[1:-1]))
    assert noise[:, 2].mean() < 0.1 * plain / math.log(40)


def test_bins_must_tell_the_values_apart():
    v = factors()
    z = coded(v)
    few = disentanglement_of_codes(z, v, num_bins=20, **OPTIONS | {"num_repeats": 1})
    assert few.mig.mean < 0.92
    assert few.gaps[:2].min() > 0.98


# Definitions of disentanglement_lib (Locatello et al. 2019), written out.


def test_concentration_is_disentanglement_and_completeness():
    importance = np.array([[0.7, 0.1, 0.2], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7], [0.0, 0.0, 0.0]])
    rows = importance[:3] / importance[:3].sum(1, keepdims=True)
    per_code = 1 + (rows * np.log(rows)).sum(1) / math.log(3)
    expected = (per_code * importance[:3].sum(1)).sum() / importance.sum()
    assert _concentration(importance) == pytest.approx(expected)
    columns = importance.T + 1e-11
    columns = columns / columns.sum(1, keepdims=True)
    per_factor = 1 + (columns * np.log(columns)).sum(1) / math.log(4)
    assert _concentration(importance.T) == pytest.approx((per_factor * importance.sum(0)).sum() / importance.sum())
    assert _concentration(np.zeros((4, 3))) == 0.0


def test_modularity_by_hand():
    share = np.array([[0.8, 0.4, 0.0], [0.0, 0.5, 0.0], [0.01, 0.04, 0.0]])  # the last has no information to speak of
    assert _modularity(share) == pytest.approx(((1 - 0.4**2 / (0.8**2 * 2)) + 1.0) / 2)
    assert _modularity(np.zeros((4, 3))) == 0.0


def test_groups_share_their_factor():
    v = factors(500, (3, 6)).numpy()
    codes = Codes(coded(factors(500, (3, 6))).numpy(), v, (False, False), 20)
    rng = np.random.default_rng(0)
    factor, rows = rng.integers(2, size=50), rng.integers(500, size=(50, 8))
    alike = codes._alike(factor, rows, rng)
    for j, first, second in zip(factor, rows, alike, strict=True):
        assert (v[first, j] == v[second, j]).all()
        assert (v[first, 1 - j] != v[second, 1 - j]).any()


def test_sap_is_the_gap_of_squared_correlations_and_accuracies():
    v = factors(2000, (3, 6))
    z = torch.stack([v[:, 1] + torch.randn(2000), v[:, 0] + 0.1 * torch.randn(2000)], 1)
    codes = Codes(z.double().numpy(), v.numpy(), (True, False), 20)
    found = codes.predictability(np.random.default_rng(0))
    assert found[0, 1] == pytest.approx(np.corrcoef(z[1000:, 0], v[1000:, 1])[0, 1] ** 2)
    assert found[1, 0] > 0.98
    assert found[0, 0] < 0.1


# Pairs.


def linear(seed=0):
    """A PPCA of data that are a linear function of two factors."""
    torch.manual_seed(seed)
    v = factors(600, (4, 6), seed)
    return PPCA(8, 3, guide="amortized"), v.float() @ torch.randn(2, 8), v


def test_the_codes_of_a_pair_are_the_means_of_its_guide():
    pair, x, v = linear()
    state = torch.get_rng_state()
    result = disentanglement(pair, x, factors=v, num_repeats=2, seed=3)
    expected = disentanglement_of_codes(pair.q_z_given_x(x).mean.detach(), v, num_repeats=2, seed=3)
    assert result.scores() == expected.scores()
    torch.testing.assert_close(result.information, expected.information)
    assert torch.equal(torch.get_rng_state(), state)
    assert "codes: means of q(z|x)" in result.summary()


def test_draws_have_less_information_than_means():
    pair, x, v = linear()
    mean, sample = (disentanglement(pair, x, factors=v, codes=kind, num_repeats=1) for kind in ("mean", "sample"))
    assert sample.information.max() < mean.information.max()
    again = disentanglement(pair, x, factors=v, codes="sample", num_repeats=1)
    assert again.scores() == sample.scores()
    assert "codes: draws from q(z|x)" in sample.summary()


class TwoSites(nn.Module):
    """Two latents, one of which has a plate and several event dims; and a class."""

    def __init__(self):
        super().__init__()
        self.q_y_given_x = ConditionalCategorical(MLP(2, (4,), 3), num_classes=3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 2, dim=-2):
                w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(torch.stack([z, w.sum((-1, -3))], -1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 0.1))
            with pyro.plate("parts", 2, dim=-2):
                pyro.sample("w", dist.Normal(x[:, 1:].expand(2, len(x), 2) * torch.tensor([1.0, 2.0]), 0.1).to_event(1))
            pyro.sample("y", self.q_y_given_x(x))


def test_latents_are_chosen_by_name_and_all_their_dimensions_count():
    v = factors(600, (4, 6))
    x = v.float()
    result = disentanglement(TwoSites(), x, factors=v, sites=["w", "z"], num_repeats=1)
    assert result.information.shape == (5, 2)
    assert result.information.argmax(1).tolist() == [1, 1, 1, 1, 0]
    drawn = disentanglement(TwoSites(), x, factors=v, codes="sample", num_repeats=1)
    assert drawn.information.shape == (6, 2)
    with pytest.raises(ValueError, match=r'codes="mean": the mean of the latent \'y\', a Categorical, is not known'):
        disentanglement(TwoSites(), x, factors=v, num_repeats=1)
    with pytest.raises(ValueError, match=r"sites names \['q'\], which are no latents of the pair: it has \['z', 'w'"):
        disentanglement(TwoSites(), x, factors=v, sites=["q"])


class Levels(nn.Module):
    """A latent whose posterior is at the draw of another."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x, 1.0))
            pyro.sample("z2", dist.Normal(z1, 1e-6))


def test_latents_that_depend_on_each_other_are_of_one_draw():
    x = torch.randn(50)
    z = _codes(Levels(), (x,), None, "sample", 0)
    torch.testing.assert_close(z[:, 0], z[:, 1], atol=1e-4, rtol=0.0)


def test_the_summary_names_factors_and_dimensions(perfect):
    lines = perfect.summary().splitlines()
    assert lines[0] == f"MIG {perfect.mig.mean:.3f} ± {perfect.mig.std_error:.3f}"
    assert lines[8] == "of 5 dimensions 5 vary; codes: as given"
    assert lines[9].startswith("shape: z[0] has 1.00 of its entropy, gap ")


# Degenerate codes and data.


def test_codes_that_do_not_vary_score_as_chance_does():
    v = factors(1000, (3, 5))
    result = disentanglement_of_codes(torch.ones(1000, 4), v, num_repeats=1)
    assert result.num_active == 0
    scores = {name: score.mean for name, score in result.scores().items()}
    assert scores.pop("β-VAE score") == scores.pop("FactorVAE score") == 0.5
    assert set(scores.values()) == {0.0}


def test_of_one_factor_what_compares_factors_is_not_known():
    v = factors(1000, (5,))
    result = disentanglement_of_codes(torch.cat([coded(v), torch.randn(1000, 1)], 1), v, num_repeats=1)
    unknown = {name for name, score in result.scores().items() if math.isnan(score.mean)}
    assert unknown == {"DCI disentanglement", "β-VAE score", "FactorVAE score", "modularity"}
    assert result.mig.mean > 0.95
    assert math.isnan(result.mig.std_error)  # of one repeat


def test_one_dimension_is_complete_of_nothing():
    v = factors(1000, (3, 5))
    result = disentanglement_of_codes(coded(v)[:, :1], v, num_repeats=1)
    assert math.isnan(result.completeness.mean)
    assert result.gaps.tolist() == pytest.approx([1.0, 0.0], abs=0.02)


V = factors(1000, (3, 5))
Z = coded(V)
NOISE = torch.randn(40, 2)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"z": Z.index_fill(0, torch.tensor([3, 5]), math.nan)}, ValueError, "z must be finite, got 2 of 1000 codes"),
        ({"z": Z[:, 0]}, ValueError, r"z must have shape \(n, k\), got \(1000,\)"),
        ({"z": Z.tolist()}, TypeError, "z must be a torch.Tensor, got list"),
        ({"factors": V.float()}, TypeError, "factors must be integers, got torch.float32: put real values into bins"),
        ({"factors": V[:500]}, ValueError, r"factors must have shape \(1000, f\), a row for each datum, got \(500, 2"),
        ({"factors": V * torch.tensor([1, 0])}, ValueError, r"factors\[:, 1\] has a single value"),
        ({"z": Z[:9], "factors": V[:9]}, ValueError, "factors must be of at least 10 data, got 9"),
        ({"z": NOISE, "factors": V[:40]}, ValueError, "factors: 20 data are too few for a mutual information of"),
        ({"names": ["a"]}, ValueError, r"names must be 2 different ones, one for each factor, got \['a'\]"),
        ({"names": ["a", "a"]}, ValueError, "names must be 2 different ones"),
        ({"names": "ab"}, TypeError, "names must be a list of names, got 'ab'"),
        ({"categorical": ["a"]}, ValueError, r"categorical names \['a'\], which are none of the factors"),
        ({"categorical": "factor 0"}, TypeError, "categorical must be a list of names, got 'factor 0'"),
        ({"num_bins": 1}, ValueError, "num_bins must be a whole number >= 2, got 1"),
        ({"num_repeats": 0}, ValueError, "num_repeats must be a whole number >= 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        disentanglement_of_codes(**{"z": Z, "factors": V, "num_repeats": 1} | arguments)


def test_wrong_codes_and_factors_of_a_pair_are_named():
    pair, x, v = linear()
    with pytest.raises(ValueError, match="codes must be one of mean, sample, got 'draw'"):
        disentanglement(pair, x, factors=v, codes="draw")
    with pytest.raises(ValueError, match=r"factors must have shape \(600, f\)"):
        disentanglement(pair, x, factors=v[:10])
