"""What is shown: terms that the evaluators give, maps that are planes of the codes, errors that name the argument."""

import numpy as np
import pytest
import torch

import ppvae
from ppvae.data import Column
from ppvae.distributions import (
    ColumnEncoder,
    ConditionalBernoulli,
    ConditionalColumns,
    ConditionalDelta,
    ConditionalNormal,
    StandardNormal,
    num_params,
)
from ppvae.explorer.exploration import ELBO_SAMPLES, look_at
from ppvae.explorer.page import content_of, kind_of
from ppvae.models import PPCA, VAE, MaskedVAE
from ppvae.nn import MLP
from tests.explorer.pairs import N, classes, image_cvae, image_vae, pictures, shaken


def test_terms_are_those_of_the_evaluators():
    pair, x, y = image_cvae(), pictures(), classes()
    found = look_at(pair, x, y, labels=y, num_samples=100, tsne=False, symbol="log p(x|y)", seed=1)
    terms = ppvae.elbo(pair, x, y, num_samples=ELBO_SAMPLES, seed=1)
    estimate = ppvae.log_marginal(pair, x, y, num_samples=100, seed=1)
    expected = {"log p(x|z)": terms.reconstruction, "KL of z": terms.kl["z"], "ELBO": terms.values}
    expected |= {"log p(x|y)": estimate.values, "k̂": estimate.pareto_k}
    assert list(found.terms) == list(expected)
    for name, values in expected.items():
        assert torch.equal(found.terms[name], values)
    torch.testing.assert_close(terms.reconstruction - terms.kl["z"], terms.values)


def test_planes_are_of_the_active_units_and_give_the_points_of_their_maps():
    pair = image_vae(k=5)
    with torch.no_grad():  # the codes of z[1] and z[3] are the same for all data
        pair.q_z_given_x.net[-2].weight[[1, 3]] = 0.0
    view = look_at(pair, pictures(), num_samples=10).views[0]
    assert view.num_active == 3
    assert set(view.units[3:]) == {1, 3}
    assert [each.name for each in view.maps[:2]] == ["principal components", "t-SNE"]
    assert len(view.maps) == 2 + 6
    assert view.maps[1].plane is None
    for each in (view.maps[0], *view.maps[2:]):
        mean, basis = each.plane
        np.testing.assert_allclose((view.codes - mean) @ basis, each.points, atol=1e-9)
        np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-9)
    assert not view.maps[0].plane[1][[1, 3]].any()
    assert view.maps[2].axes == tuple(view.maps[2].name.split(" and "))


@pytest.mark.parametrize(("k", "names"), [(1, ["z[0]"]), (2, ["z[0] and z[1]"])])
def test_few_units_are_the_map(k, names):
    found = look_at(PPCA(8, k), torch.randn(N, 8), num_samples=10)
    assert [each.name for each in found.views[0].maps] == names
    if k == 1:
        np.testing.assert_array_equal(found.views[0].maps[0].points[:, 1], found.terms["log p(x)"].numpy())


def test_of_a_deterministic_encoder_the_reconstruction_alone():
    net, image = MLP((1, 6, 6), (8,), 3), (1, 6, 6)
    pair = VAE(StandardNormal(3), ConditionalBernoulli(MLP(3, (8,), image)), ConditionalDelta(net))
    assert list(look_at(pair, pictures(), tsne=False).terms) == ["log p(x|z)"]


def test_a_table_has_its_columns_and_says_which_cells_are_missing():
    columns = [Column("size", loc=170.0, scale=10.0), Column("kind", "categorical", ("a", "b", "c"))]
    net, encoder = MLP(2, (4,), num_params(columns)), ColumnEncoder(columns, (4,), (2, 2))
    pair = shaken(MaskedVAE(StandardNormal(2), ConditionalColumns(net, columns), ConditionalNormal(encoder)))
    x = torch.tensor([[160.0, 0.0], [0.0, 2.0], [180.0, 1.0]])
    there = torch.tensor([[True, True], [False, True], [True, True]])
    found = look_at(pair, x, there, num_samples=10)
    content = content_of(found, ())
    assert found.columns == tuple(columns)
    assert (content["kind"], [each["name"] for each in content["columns"]]) == ("table", ["size", "kind"])
    assert torch.equal(found.x.isnan(), ~there)


def test_how_data_are_shown():
    assert kind_of((3, 8, 8)) == ("image", [3, 8, 8])
    assert kind_of((2, 8, 8)) == ("series", [1, 128])
    assert kind_of(()) == ("table", [1])


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(N), TypeError, "labels must be integers, one for each datum, got torch.float32"),
        (torch.zeros(N - 1).long(), ValueError, r"labels must have shape \(12,\), one for each datum, got \(11,\)"),
        ("abc", TypeError, "labels must be integers, one for each datum, got str"),
    ],
)
def test_wrong_labels_are_named(labels, error, message):
    with pytest.raises(error, match=message):
        look_at(image_vae(), pictures(), labels=labels)


def test_one_datum_is_no_map():
    with pytest.raises(ValueError, match="at least 2 data"):
        look_at(image_vae(), pictures(1))
