import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ppvae.evaluate.arviz import to_arviz
from ppvae.evaluate.predictive import PosteriorPredictive, posterior_predictive
from tests.reference import linear_gaussian, masked_series, mixture, ppca, wrong_softmax


@pytest.fixture(scope="module")
def az():
    import arviz
    import matplotlib

    matplotlib.use("Agg")
    return arviz


def groups_of(data):
    """ArviZ 1 has trees, of which `groups` are paths."""
    return list(data.children) if hasattr(data, "children") else data.groups()


def pointwise(loo):
    """Of each datum the log p of it given the others; called otherwise in ArviZ 1."""
    return loo["elpd_i" if hasattr(loo, "elpd_i") else "loo_i"]


def draws_of(reference, s=60):
    return posterior_predictive(reference.pair, *reference.data, num_samples=s)


def test_groups_dims_and_values():
    draws = draws_of(masked_series(), 5)
    data = to_arviz(draws)
    assert groups_of(data) == ["posterior", "posterior_predictive", "log_likelihood", "observed_data", "constant_data"]
    assert data.posterior["z"].dims == ("chain", "draw", "datum")
    assert data.posterior["w"].dims == ("chain", "draw", "datum", "time")
    assert data.posterior_predictive["x"].dims == ("chain", "draw", "datum", "time")
    assert data.log_likelihood["x"].dims == ("chain", "draw", "datum")
    assert data.observed_data["x"].dims == ("datum", "time")
    assert data.constant_data["length"].dims == ("datum",)
    assert data.posterior["w"].coords["time"].values.tolist() == [0, 1, 2, 3]
    assert (data.posterior["w"].values[0] == draws.posterior["w"].numpy()).all()
    assert (data.log_likelihood["x"].values[0] == draws.log_likelihood["x"].numpy()).all()
    assert (data.observed_data["x"].values == draws.observed["x"].numpy()).all()


def test_event_dims_are_named_after_their_variable():
    data = to_arviz(draws_of(ppca(), 5))
    assert data.posterior["z"].dims == ("chain", "draw", "datum", "z_dim")
    assert data.observed_data["x"].dims == ("datum", "x_dim")
    assert "constant_data" not in groups_of(data)


def test_of_a_pair_at_once():
    reference = ppca()
    data = to_arviz(reference.pair, *reference.data, num_samples=5, seed=3)
    draws = posterior_predictive(reference.pair, *reference.data, num_samples=5, seed=3)
    assert (data.posterior["z"].values[0] == draws.posterior["z"].numpy()).all()
    assert to_arviz(reference.pair, *reference.data).posterior.sizes["draw"] == 100
    with pytest.raises(TypeError, match="draws were made before"):
        to_arviz(draws, num_samples=5)


def test_plates_named_like_a_site_and_images_in_half_precision():
    s, n = 2, 3
    draws = PosteriorPredictive(
        {"z": torch.zeros(s, n, 4, dtype=torch.bfloat16)},
        {"x": torch.zeros(s, n, 4, 5, 5)},
        {"x": torch.zeros(s, n)},
        {"x": torch.zeros(n, 4, 5, 5)},
        {},
        {"z": ("x",), "x": ("x",)},
    )
    data = to_arviz(draws)
    assert data.posterior["z"].dims == ("chain", "draw", "datum", "x_plate")
    assert data.observed_data["x"].dims == ("datum", "x_plate", "x_dim_0", "x_dim_1")


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ with matplotlib 3.11
@pytest.mark.parametrize("make", [ppca, masked_series, mixture, wrong_softmax])
def test_arviz_understands_it(az, make):
    import matplotlib.pyplot as plt

    draws = draws_of(make())
    data = to_arviz(draws)
    (site,) = draws.observed
    summary = az.summary(data, kind="stats")
    assert len(summary) == sum(z[0].numel() for z in draws.posterior.values())
    mean = next(iter(draws.posterior.values()))[:, 0].double().mean(0).flatten()[0]
    assert summary["mean"].iloc[0] == pytest.approx(float(mean), abs=1e-3)
    assert pointwise(az.loo(data, pointwise=True)).shape == (len(draws.observed[site]),)
    if int(az.__version__.split(".")[0]) >= 1:  # draws it by another name
        return
    axes = az.plot_ppc(data, num_pp_samples=5, random_seed=0)
    assert site in axes.get_xlabel()
    plt.close("all")


def test_loo_with_the_exact_posterior_is_the_marginal_likelihood(az):
    """What the docstring says: with the parameters fixed, leaving a datum out leaves log p(x)."""
    reference = linear_gaussian()
    pair = reference.pair
    with torch.no_grad():
        pair.log_t -= torch.tensor(1.3).log()
        pair.log_s += 1.2  # a likelihood wide enough that the harmonic mean has a finite variance
        variance = (2 * pair.log_s).exp()
        pair.a.copy_(pair.c / (pair.c**2 + variance))
        pair.b.copy_(-pair.d * pair.a)
        pair.log_t.copy_(0.5 * (variance / (pair.c**2 + variance)).log())
    (x,) = reference.data
    data = to_arviz(posterior_predictive(pair, x, num_samples=20000))
    loo = az.loo(data, pointwise=True)
    assert torch.allclose(torch.tensor(pointwise(loo).values), pair.exact(x), atol=0.1)


def test_of_arviz_1_it_is_a_tree(monkeypatch):
    """ArviZ 1 has no `InferenceData`; its functions take a tree with the same groups."""
    monkeypatch.setattr("ppvae.evaluate.arviz.import_arviz", lambda: SimpleNamespace(__version__="1.3.0"))
    draws = draws_of(masked_series(), 5)
    tree = to_arviz(draws)
    assert list(tree.children) == [
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "observed_data",
        "constant_data",
    ]
    assert tree["posterior/w"].dims == ("chain", "draw", "datum", "time")
    assert (tree.posterior["w"].values[0] == draws.posterior["w"].numpy()).all()


def test_the_notice_of_arviz_is_no_error(tmp_path):
    """ArviZ gives it once a day, as a stamp in the cache folder says: an empty one is a new day."""
    code = "from ppvae.evaluate.arviz import import_arviz; print(import_arviz().__name__)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "arviz"), result.stderr
