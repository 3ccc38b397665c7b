import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ppvae
from ppvae.data import Batches, Binarize
from ppvae.evaluate import posterior_predictive
from ppvae.models import PPCA
from tests.infer.pairs import D, Published, Scalar, TwoLatents, binary, same, small_vae, state


class Broken(nn.Module):
    """A scalar pair with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.loc = fault, nn.Parameter(torch.tensor(0.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=None if self.fault == "no obs" else x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.fault != "missed":
                pyro.sample("z", dist.Normal(self.loc, 1.0))
            if self.fault == "extra":
                pyro.sample("w", dist.Normal(self.loc, 1.0))
            if self.fault == "no obs":
                pyro.sample("x", dist.Normal(self.loc, 1.0))


def poisoned(value, row=-1, n=5000):
    x = binary(n)
    x[row, 3] = value
    return x


def scalar():
    return torch.arange(4.0)


def per_datum():
    """A guide with parameters for each of as many data as it first met."""
    model = Broken("nothing").model
    pair = ppvae.Pair(model, AutoNormal(model))
    pair.guide(torch.arange(5.0))
    return pair


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")

BAD = {
    "nan": (small_vae, poisoned(float("nan")), {}, ValueError, r"train: tensors\[0\] must be finite.*row 4999"),
    "inf": (small_vae, poisoned(float("inf")), {}, ValueError, r"train: tensors\[0\] must be finite"),
    "float64": (small_vae, binary(9).double(), {}, ValueError, r"train \(torch.float64 \(9, 6\).*torch.float32"),
    "int64": (small_vae, binary(9).long(), {}, ValueError, r"train \(torch.int64 \(9, 6\)"),
    "width": (small_vae, binary(9, d=5), {}, ValueError, r"train \(torch.float32 \(9, 5\)"),
    "arguments": (
        small_vae,
        (binary(9), binary(9)),
        {},
        TypeError,
        r"each tensor of train .* takes 1 \(x\), got 2",
    ),
    "support": (small_vae, poisoned(2.0), {}, ValueError, r"train\[0\] .* Bernoulli at site 'x', e.g. 2: expected"),
    "support, first row": (small_vae, poisoned(0.5, 0), {}, ValueError, r"train\[0\] .* site 'x', e.g. 0.5"),
    "support, reshaped": (Published, poisoned(2.0), {}, ValueError, r"train\[0\] .* site 'obs', e.g. 2"),
    "support, masked": (TwoLatents, poisoned(2.0), {}, ValueError, r"train\[0\] .* site 'x', e.g. 2"),
    "support, valid": (small_vae, binary(9), {"valid": poisoned(2.0)}, ValueError, r"valid\[0\] .* outside"),
    "loader": (small_vae, [(poisoned(2.0, n=8),)], {}, ValueError, r"train\[0\] holds values outside"),
    "loader, nan": (small_vae, [poisoned(float("nan"), n=8)], {}, ValueError, r"train\[0\] holds NaN"),
    "valid, nan": (small_vae, binary(9), {"valid": poisoned(float("nan"))}, ValueError, "valid: tensors"),
    "empty": (small_vae, binary(0), {}, ValueError, "train is empty"),
    "no batch": (small_vae, [], {}, ValueError, "train is empty: it gives no minibatch"),
    "lengths": (small_vae, (binary(4), binary(5)), {}, ValueError, r"train must hold .* lengths \[4, 5\]"),
    "mixed": (small_vae, (binary(4), "y"), {}, TypeError, r"train\[1\] must be a tensor .* got str"),
    "0-d": (small_vae, torch.tensor(1.0), {}, TypeError, r"train\[0\] must be .* got a 0-d tensor"),
    "iterator": (small_vae, iter([binary(4)]), {}, TypeError, "train must be .* iterator list_iterator"),
    "generator": (small_vae, (b for b in [binary(4)]), {}, TypeError, "train must be .* iterator generator"),
    "dict": (small_vae, {"x": binary(4)}, {}, TypeError, "train must be .* got dict"),
    "text": (small_vae, "mnist", {}, TypeError, "train must be .* got the path 'mnist': pictures below a path are"),
    "number": (small_vae, 3, {}, TypeError, "train must be .* got int"),
    "labels": (
        small_vae,
        TensorDataset(binary(4), binary(4)),
        {},
        TypeError,
        r"takes 1 \(x\), got 2; .*columns=\(0,\)",
    ),
    "array of text": (
        small_vae,
        binary(4).numpy().astype(str),
        {},
        TypeError,
        "must hold numbers, got an array of dtype <U",
    ),
    "list of dicts": (small_vae, [{"x": binary(4)}], {}, TypeError, r"minibatches that are dicts, of \['x'\]: .*'x',"),
    "batch of numbers": (small_vae, [(1,)], {}, TypeError, r"train\[0\] must be .* got int"),
    "epochs": (small_vae, binary(4), {"epochs": 0}, ValueError, "epochs must be a whole number >= 1, got 0"),
    "epochs float": (small_vae, binary(4), {"epochs": 1.5}, ValueError, "epochs must be .* got 1.5"),
    "batch_size": (small_vae, binary(4), {"batch_size": 0}, ValueError, "batch_size must be .* got 0"),
    "patience": (small_vae, binary(4), {"patience": 2}, ValueError, "patience needs validation data: valid is None"),
    "patience 0": (small_vae, binary(4), {"valid": binary(4), "patience": 0}, ValueError, "patience must be .* got 0"),
    "cuda": (small_vae, binary(4), {"device": "cuda"}, ValueError, "no CUDA GPU"),
    "device": (small_vae, binary(4), {"device": "gpu"}, ValueError, "device must be a torch device .* 'gpu'"),
    "seed": (small_vae, binary(4), {"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
    "clip_norm": (small_vae, binary(4), {"clip_norm": 0}, ValueError, "clip_norm must be a finite number > 0, got 0"),
    "clip_norm text": (small_vae, binary(4), {"clip_norm": "1"}, ValueError, "clip_norm must be .* got '1'"),
    "lr": (small_vae, binary(4), {"lr": "1e-3"}, TypeError, "lr must be a number or a function .* got str"),
    "lr, scheduled": (small_vae, binary(4), {"lr": lambda t: -1.0}, ValueError, "lr must give .* got -1.0 at epoch 0"),
    "lr, of text": (small_vae, binary(4), {"lr": lambda t: "a"}, ValueError, "lr must give finite numbers .* got 'a'"),
    "autocast": (small_vae, binary(4), {"autocast": "bf16"}, ValueError, "autocast must be torch.bfloat16, .* 'bf16'"),
    "out": (small_vae, binary(4), {"out": 3}, TypeError, "out must be a path, got 3"),
    "config": (
        small_vae,
        binary(4),
        {"config": {"x": binary(1)}},
        TypeError,
        "config must hold what JSON can: ",
    ),
    "config, no dict": (small_vae, binary(4), {"config": 3}, TypeError, "config must be a dict or None, got 3"),
    "mps": (small_vae, binary(4), {"device": "mps"}, ValueError, "device must be the CPU or a CUDA GPU, got 'mps'"),
    "loss, class": (small_vae, binary(4), {"loss": Trace_ELBO}, TypeError, r"or a function, e.g. Trace_ELBO\(\), got"),
    "lr < 0": (small_vae, binary(4), {"lr": -1.0}, ValueError, "lr must be a finite number >= 0, got -1.0"),
    "kl_weight": (small_vae, binary(4), {"kl_weight": [1]}, TypeError, "kl_weight must be .* got list"),
    "kl_sites": (
        small_vae,
        binary(4),
        {"kl_weight": 0.5, "kl_sites": ["y"]},
        ValueError,
        r"latents \['z'\], got \['y'\]",
    ),
    "kl_sites text": (small_vae, binary(4), {"kl_weight": 0.5, "kl_sites": "z"}, TypeError, "list of names .* got 'z'"),
    "kl_sites alone": (small_vae, binary(4), {"kl_sites": ["z"]}, ValueError, "kl_sites needs kl_weight"),
    "optim": (small_vae, binary(4), {"optim": "adam"}, TypeError, "optim must be called as .* builtins.str"),
    "pyro.optim": (small_vae, binary(4), {"optim": pyro.optim.Adam({})}, TypeError, "ppvae.SVI takes pyro.optim"),
    "optim's result": (small_vae, binary(4), {"optim": lambda p, lr: 3}, TypeError, "optim must return .* got int"),
    "loss": (small_vae, binary(4), {"loss": "elbo"}, TypeError, "loss must be a pyro.infer ELBO object"),
    "function": (lambda: small_vae().model, binary(4), {}, TypeError, "pair must be an nn.Module .* got method"),
    "no guide": (lambda: nn.Linear(1, 1), binary(4), {}, TypeError, "without a method model or guide"),
    "frozen": (lambda: small_vae().requires_grad_(False), binary(4), {}, ValueError, "nothing to train"),
    "a parameter for each datum": (
        per_datum,
        torch.arange(12.0),
        {"batch_size": 5},
        ValueError,
        "the guide draws 'z' for 5 data whatever it is given",
    ),
    "missed": (lambda: Broken("missed"), scalar(), {}, ValueError, "the guide misses the latent site 'z'"),
    "extra": (lambda: Broken("extra"), scalar(), {}, ValueError, "the guide samples 'w', which is no latent"),
    "no obs": (lambda: Broken("no obs"), scalar(), {}, ValueError, "the model observes nothing"),
    "callbacks": (small_vae, binary(4), {"callbacks": print}, TypeError, "callbacks must be a list of functions"),
    "a callback": (small_vae, binary(4), {"callbacks": [3]}, TypeError, r"functions f\(row, pair, epoch\), got 3"),
}


@pytest.mark.parametrize(
    ("make", "train", "options", "kind", "message"),
    [pytest.param(*case, id=name, marks=[NO_CUDA] if name == "cuda" else []) for name, case in BAD.items()],
)
def test_bad_input_is_named_before_anything_is_written(tmp_path, make, train, options, kind, message):
    pair = make()
    before = state(pair) if isinstance(pair, nn.Module) else None
    random, store = torch.get_rng_state(), list(pyro.get_param_store().keys())
    settings = pyro.settings.get()
    with pytest.raises(kind, match=message):
        ppvae.fit(pair, train, **{"out": tmp_path / "run", "progress": False, "epochs": 2, **options})
    assert not (tmp_path / "run").exists()
    assert before is None or same(before, state(pair))
    assert torch.equal(random, torch.get_rng_state())
    assert (store, settings) == (list(pyro.get_param_store().keys()), pyro.settings.get())


def test_run_folder_arguments(tmp_path):
    with pytest.raises(ValueError, match="resume needs the folder of the run: out is None"):
        ppvae.fit(small_vae(), binary(4), resume=True)
    started = ppvae.fit(small_vae(), binary(4), out=tmp_path / "run", epochs=1, progress=False, resume=True)
    assert len(started.history) == 1  # a job that is requeued always says resume
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="holds a run already"):
        ppvae.fit(small_vae(), binary(4), out=tmp_path / "run", epochs=1, progress=False)
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_data_that_are_transformed_are_checked_after_the_transform():
    grey = torch.rand(20, D, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="outside the support of Bernoulli"):
        ppvae.fit(small_vae(), Batches(grey, batch_size=8), epochs=1, progress=False)
    ppvae.fit(small_vae(), Batches(grey, batch_size=8, transform=Binarize()), epochs=1, progress=False)


def test_a_bound_of_each_datum_is_no_bound_of_all_data():
    class Bounded(Broken):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Uniform(x - 1.0, x + 1.0), obs=x)
                pyro.sample("y", dist.Normal(z, 1.0), obs=x)

    ppvae.fit(Bounded(None), torch.arange(50.0), epochs=1, progress=False)


def test_where_the_user_turned_validation_off_values_are_not_judged():
    with pyro.validation_enabled(False):
        ppvae.fit(small_vae(), torch.full((8, D), 0.5), epochs=1, progress=False)


def test_a_loader_keeps_its_order():
    orders = []
    for fits in (0, 1):
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(binary(8)), batch_size=2, shuffle=True, generator=generator)
        for _ in range(fits):
            with pytest.raises(ValueError, match="guide misses"):
                ppvae.fit(Broken("missed"), loader, epochs=1, progress=False)
        orders.append([batch for (batch,) in loader])
    assert same(*orders)


def test_a_loader_without_a_generator_leaves_the_global_one_alone():
    loader, before = DataLoader(TensorDataset(binary(8)), batch_size=2, shuffle=True), torch.get_rng_state()
    ppvae.fit(small_vae(), loader, loader, epochs=1, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_ppca_accepts_what_fits():
    run = ppvae.fit(PPCA(3, 1), torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), epochs=1, progress=False)
    assert run.stopped == "finished"


def two_dimensional(x):
    """z ~ N(0, I), x ~ N(z W, σ), for an autoguide with parameters for each datum."""
    sigma = pyro.param("sigma", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ torch.tensor([[1.0, 0.5, -1.0], [0.0, 1.0, 2.0]]), sigma).to_event(1), obs=x)


def data_of_two_dimensions(n):
    torch.manual_seed(0)
    return torch.randn(n, 2) @ torch.tensor([[1.0, 0.5, -1.0], [0.0, 1.0, 2.0]]) + 0.3 * torch.randn(n, 3)


def test_a_guide_of_each_datum_is_refused_in_minibatches():
    pair, x = ppvae.Pair(two_dimensional, AutoNormal(two_dimensional)), data_of_two_dimensions(64)
    for train in (x, DataLoader(TensorDataset(x), batch_size=32, shuffle=True)):
        with pytest.raises(ValueError, match=r"the guide draws 'z' for 32 data whatever it is given.*batch_size >="):
            ppvae.fit(pair, train, epochs=1, batch_size=32, progress=False)


def test_a_guide_of_each_datum_trains_on_all_data_at_once():
    pair, x = ppvae.Pair(two_dimensional, AutoNormal(two_dimensional)), data_of_two_dimensions(64)
    run = ppvae.fit(pair, x, epochs=600, batch_size=64, lr=0.03, progress=False)
    assert {column for column in run.history[-1] if column.startswith("kl_")} == {"kl_z"}
    assert run.history[-1]["kl_z"] > 0
    assert pair.pyro_params["sigma"].item() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("subsample", [False, True])
def test_a_latent_of_all_data_is_counted_once_by_a_scaled_plate(subsample):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 40, subsample_size=len(x)) if subsample else pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc_mean", torch.tensor(0.0))
        pyro.sample("loc", dist.Normal(loc, 0.2))

    def train():
        ppvae.fit(ppvae.Pair(model, guide), torch.randn(40), epochs=1, batch_size=10, progress=False)

    if subsample:
        train()
    else:
        with pytest.warns(UserWarning, match="the latent 'loc' lies in no plate: every minibatch of train"):
            train()


def global_and_local(model_plate, guide_plate):
    """mu ~ N(0, 1); z ~ N(0, 1), x ~ N(mu + z, 1) of each of 1,000 data, in plates that the two make."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with model_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mu + z, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))
        with guide_plate(x):
            pyro.sample("z", dist.Normal(0.5 * x, pyro.param("scale", torch.tensor(0.7))))

    return ppvae.Pair(model, guide)


def given(x):
    return pyro.plate("data", len(x))


def of_all(x):
    return pyro.plate("data", 1000, subsample_size=len(x))


def of_a_fixed_size(x):
    return pyro.plate("data", 1000)


@pytest.mark.parametrize("plate", [of_all, of_a_fixed_size])
def test_latents_that_count_otherwise_in_model_and_guide_are_named(plate):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    options = {"epochs": 1, "batch_size": 100, "progress": False}
    with pytest.warns(UserWarning, match="latent 'z' has the scale 10 in the model, and log q 1 in the guide"):
        ppvae.fit(global_and_local(plate, given), x, **options)
    with warnings.catch_warnings(action="error"):
        ppvae.fit(global_and_local(of_all, of_all), x, **options)


def test_the_history_has_its_share_of_a_global_kl():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    pair = global_and_local(of_all, of_all)
    run = ppvae.fit(pair, x, epochs=1, batch_size=100, lr=0.0, progress=False)
    (row,) = run.history
    exact = torch.distributions.kl_divergence(dist.Normal(0.0, 0.1), dist.Normal(0.0, 1.0)) / 1000
    assert row["kl_mu"] == pytest.approx(float(exact), abs=1e-3)
    assert row["elbo"] == pytest.approx(row["reconstruction"] - row["kl_mu"] - row["kl_z"])
    assert row["elbo"] == pytest.approx(-row["loss"] / 10, rel=1e-4)


def masked_pair(in_guide):
    """A latent that only some data have: masked in the model, and in the guide or not."""

    def model(x, has):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=has):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(has, z, 0.0), 1.0), obs=x)

    def guide(x, has):
        with pyro.plate("data", len(x)), poutine.mask(mask=has if in_guide else torch.ones_like(has)):
            pyro.sample("z", dist.Normal(0.5 * x, pyro.param("scale", torch.tensor(0.5**0.5))))

    return ppvae.Pair(model, guide)


def test_masks_of_a_latent_that_differ_are_named():
    x, has = torch.randn(20), torch.arange(20) % 3 > 0
    with pytest.raises(ValueError, match=r"mask leaves out other elements of the latents \['z'\] in the model than"):
        ppvae.log_marginal(masked_pair(False), x, has, num_samples=5)
    with pytest.warns(UserWarning, match=r"mask leaves out other elements of the latents \['z'\] in the model than"):
        ppvae.fit(masked_pair(False), (x, has), epochs=1, progress=False)
    exact = torch.where(has, dist.Normal(0.0, 2**0.5).log_prob(x), dist.Normal(0.0, 1.0).log_prob(x))
    found = ppvae.log_marginal(masked_pair(True), x, has, num_samples=5).values
    torch.testing.assert_close(found.float(), exact)


@pytest.mark.parametrize("x", [binary(9).long(), binary(9).double(), binary(9, d=5), binary(9)[0]])
def test_evaluators_name_data_that_the_pair_fails_on(x):
    with pytest.raises(ValueError, match=r"the pair fails on data \(torch\..*; its parameters are torch.float32\)"):
        ppvae.log_marginal(small_vae(), x, num_samples=2)


def test_evaluators_name_the_datum_that_is_not_a_number():
    x = binary(300)
    x[7] = float("nan")
    for evaluate in (ppvae.log_marginal, ppvae.elbo, posterior_predictive):
        with pytest.raises(ValueError, match=r"data\[0\] holds NaN or infinite values, first in row 7, and the pair"):
            evaluate(small_vae(), x, num_samples=20)


def test_an_argument_that_all_data_do_without(tmp_path):
    class Labelled(Scalar):
        def model(self, x, y=None):
            assert y is None
            super().model(x)

        def guide(self, x, y=None):
            super().guide(x)

    runs = [
        ppvae.fit(pair, x, epochs=2, progress=False)
        for pair, x in ((Scalar(), scalar()), (Labelled(), (scalar(), None)))
    ]
    assert runs[0].history == runs[1].history


@pytest.mark.parametrize("loss", [None, TraceEnum_ELBO(max_plate_nesting=1)])
def test_values_that_pyro_would_sum_over_without_their_probabilities_are_refused(loss):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(z @ torch.arange(3.0), 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(logits=logits), infer={"enumerate": "parallel"})

    family = dist.OneHotCategoricalStraightThrough
    with pytest.raises(ValueError, match=r"z.* is marked .*, and draws of OneHotCategoricalStraightT.* are diff"):
        ppvae.fit(ppvae.Pair(model, guide), torch.zeros(20), loss=loss, epochs=1, progress=False)
    family = dist.OneHotCategorical
    ppvae.fit(ppvae.Pair(model, guide), torch.zeros(20), loss=loss, epochs=1, progress=False)
