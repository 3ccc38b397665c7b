"""Models whose latents all data share, or which have none but those that are summed over."""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib import gp
from pyro.contrib.cevae import CEVAE, TraceCausalEffect_ELBO
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal, init_to_feasible
from torch import Tensor

import ppvae
from published import Part, Published, example, images, minibatches, notebook, script


@example
def lda(pyro_dir: Path) -> Published:
    """examples/lda.py: topics of documents; the words' topics are summed over, the subsample is drawn in the guide."""
    module = script(pyro_dir, "lda.py")
    args = Namespace(num_topics=8, num_words=1024, num_docs=1000, num_words_per_doc=64, layer_sizes="100-100")
    words = module.model(args=args)[2]
    guide = functools.partial(module.parametrized_guide, module.make_predictor(args))
    part = Part(module.model, guide, TraceEnum_ELBO(max_plate_nesting=2))
    pair = ppvae.Pair(lambda x: module.model(x, args), lambda x: guide(x, args), [guide.args[0]])
    batches = [((words,), {"args": args, "batch_size": 32})]
    return Published((part,), pyro.optim.ClippedAdam({"lr": 0.01}), batches, pair, (words,), shared=True)


def _hmm(pyro_dir: Path, which: int) -> Published:
    module = script(pyro_dir, "hmm.py")
    model = module.models[str(which)]
    args = Namespace(hidden_dim=16, nn_dim=48, nn_channels=2, jit=False, raftery_parameterization=False)
    sequences, lengths = (torch.rand(32, 8, 51) < 0.1).float(), torch.arange(5, 9).repeat(8)
    guide = AutoDelta(poutine.block(model, expose_fn=lambda msg: msg["name"].startswith("probs_")))
    elbo = TraceEnum_ELBO(max_plate_nesting=1 if which == 0 else 2, strict_enumeration_warning=which != 7)
    pair = ppvae.Pair(lambda *x: model(*x, args), lambda *x: guide(*x, args), [guide])
    batches = [((sequences, lengths), {"args": args, "batch_size": 8})]
    optim = pyro.optim.Adam({"lr": 0.05})
    return Published((Part(model, guide, elbo),), optim, batches, pair, (sequences, lengths), elbo, shared=True)


def _make_hmm(which: int) -> Callable[[Path], Published]:
    def make(pyro_dir: Path) -> Published:
        return _hmm(pyro_dir, which)

    make.__name__, make.__doc__ = f"hmm_{which}", f"examples/hmm.py, model {which}: a chain of states, summed over."
    return make


for _which in range(8):
    example(_make_hmm(_which))


def _sparse_gamma(pyro_dir: Path, kind: str) -> Published:
    module = script(pyro_dir, "sparse_gamma_def.py")
    made, x = module.SparseGammaDEF(), torch.poisson(torch.full((32, 64 * 64), 3.0))
    guide = {
        "custom": lambda: made.guide,
        "auto": lambda: AutoDiagonalNormal(made.model, init_loc_fn=init_to_feasible),
        "easy": lambda: module.MyEasyGuide(made.model),
    }[kind]()
    rates = {"eta": 4.5, "t": 0.1} if kind == "custom" else {"eta": 0.2, "t": 0.05}
    part, optim = Part(made.model, guide, TraceMeanField_ELBO()), pyro.optim.AdagradRMSProp(rates)
    after = module.clip_params if kind == "custom" else lambda: None
    return Published((part,), optim, [((x,), {})], ppvae.Pair(made.model, guide), (x,), after_step=after, shared=True)


@example
def sparse_gamma(pyro_dir: Path) -> Published:
    """examples/sparse_gamma_def.py: a deep exponential family with its own guide, whose parameters it clips."""
    return _sparse_gamma(pyro_dir, "custom")


@example
def sparse_gamma_auto(pyro_dir: Path) -> Published:
    """The same with an autoguide."""
    return _sparse_gamma(pyro_dir, "auto")


@example
def sparse_gamma_easy(pyro_dir: Path) -> Published:
    """The same with an `EasyGuide`."""
    return _sparse_gamma(pyro_dir, "easy")


@example
def svi_torch(pyro_dir: Path) -> Published:
    """examples/svi_torch.py: a regression with an autoguide, minibatches in a plate of all data."""
    model = script(pyro_dir, "svi_torch.py").Model(1000)
    x = torch.randn(1000)
    data = x, 0.7 * x + 0.3 + 0.5 * torch.randn(1000)
    guide = AutoNormal(model)
    part, pair = Part(model, guide, Trace_ELBO()), ppvae.Pair(model, guide)
    return Published((part,), pyro.optim.Adam({"lr": 0.01}), minibatches(*data, size=100), pair, data, shared=True)


@example
def eight_schools(pyro_dir: Path) -> Published:
    """examples/eight_schools/svi.py: eight data and two latents that they share, inside of their plate."""
    module = script(pyro_dir, "eight_schools/svi.py")
    part, pair = Part(module.model, module.guide, Trace_ELBO()), ppvae.Pair(module.model, module.guide)
    batches = [((module.data,), {})]
    return Published((part,), pyro.optim.Adam({"lr": 0.01}), batches, pair, (module.data,), shared=True)


def _cjs(pyro_dir: Path, which: int) -> Published:
    folder = pyro_dir / "examples" / "capture_recapture"
    model = script(pyro_dir, "capture_recapture/cjs.py").models[str(which)]
    history, sex = (
        torch.tensor(np.genfromtxt(folder / name, delimiter=",")).float()[:, 1:]
        for name in ("dipper_capture_history.csv", "dipper_sex.csv")
    )
    guide = AutoDiagonalNormal(poutine.block(model, expose_fn=lambda msg: msg["name"][:3] in ("phi", "rho")))
    elbo = TraceEnum_ELBO(max_plate_nesting=1, num_particles=20, vectorize_particles=True)
    data, pair = (history, sex[:, 0]), ppvae.Pair(model, guide)
    optim = pyro.optim.Adam({"lr": 0.002})
    return Published((Part(model, guide, elbo),), optim, [(data, {})], pair, data, elbo, shared=True)


@example
def cjs_1(pyro_dir: Path) -> Published:
    """examples/capture_recapture/cjs.py, model 1: whether an animal lives is summed over, along its whole history."""
    return _cjs(pyro_dir, 1)


@example
def cjs_3(pyro_dir: Path) -> Published:
    """The same with a survival rate of each year, drawn from what they have in common."""
    return _cjs(pyro_dir, 3)


@example
def mixed_hmm(pyro_dir: Path) -> Published:
    """examples/mixed_hmm: chains of individuals in groups, without arguments; it makes its own optimizer of torch's."""
    module = script(pyro_dir, "mixed_hmm/model.py")
    observed = {"step": dist.Gamma(2.0, 1.0), "angle": dist.Normal(0.0, 1.0), "omega": dist.Beta(2.0, 2.0)}
    config = {
        "MISSING": 1e-6,
        "sizes": {"state": 3, "random": 4, "group": 2, "individual": 10, "timesteps": 6},
        "group": {"random": "continuous", "fixed": None},
        "individual": {"random": "continuous", "fixed": None, "mask": torch.rand(10, 2) < 0.8},
        "timestep": {"random": None, "fixed": None, "mask": torch.rand(10, 2, 6) < 0.9},
        "observations": {name: fn.sample((10, 2, 6)) for name, fn in observed.items()},
    }
    model, guide = (functools.partial(f, config) for f in (module.model_generic, module.guide_generic))
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    pair = ppvae.Pair(lambda x: model(), lambda x: guide())
    optim = pyro.optim.Adam({"lr": 0.05})
    data = (config["observations"]["step"],)
    return Published((Part(model, guide, elbo),), optim, [((), {})], pair, data, elbo, shared=True)


@example
def gmm(pyro_dir: Path) -> Published:
    """tutorial/source/gmm.ipynb: a mixture of normals, its assignments summed over, point estimates of the rest."""
    x = torch.cat([torch.randn(100), 10 + torch.randn(150)])
    given = {"pyro": pyro, "dist": dist, "torch": torch, "config_enumerate": config_enumerate, "data": x}
    model = notebook(pyro_dir, "gmm.ipynb", defines=["Fixed number of components"], **given).model
    guide = AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    elbo, optim = TraceEnum_ELBO(max_plate_nesting=1), pyro.optim.Adam({"lr": 0.1, "betas": [0.8, 0.99]})
    return Published((Part(model, guide, elbo),), optim, [((x,), {})], ppvae.Pair(model, guide), (x,), shared=True)


@example
def toy_mixture(pyro_dir: Path) -> Published:
    """examples/toy_mixture_model_discrete_enumeration.py: dicts of tensors and a number as arguments."""
    module = script(pyro_dir, "toy_mixture_model_discrete_enumeration.py")
    prior, _, observed = module.generate_data(1000)
    part = Part(module.model, module.guide, TraceEnum_ELBO(max_plate_nesting=1))

    def of_tensors(function: Callable[..., Any]) -> Callable[[Tensor, Tensor], Any]:
        return lambda a, c: function(prior, {"A": a, "C": c}, len(a))

    pair = ppvae.Pair(of_tensors(module.model), of_tensors(module.guide))
    data, batches = (observed["A"], observed["C"]), [((prior, observed, 1000), {})]
    return Published((part,), pyro.optim.Adam({"lr": 0.01}), batches, pair, data, shared=True)


@example
def cevae(pyro_dir: Path) -> Published:
    """examples/contrib/cevae: the effect of a treatment, with a confounder of each datum and an ELBO of its own."""
    module = script(pyro_dir, "contrib/cevae/synthetic.py")
    *data, _ = module.generate_data(Namespace(num_data=400, feature_dim=5))
    made = CEVAE(feature_dim=5, latent_dim=20, hidden_dim=200, num_layers=3, num_samples=10)
    batches = [(args, {"size": 400}) for args, _ in minibatches(*data, size=100)]
    optim = pyro.optim.ClippedAdam({"lr": 1e-3, "weight_decay": 1e-4, "lrd": 0.1 ** (1 / 200)})
    return Published(
        (Part(made.model, made.guide, TraceCausalEffect_ELBO()),),
        optim,
        batches,
        ppvae.Pair(made.model, made.guide),
        tuple(data),
        fit_loss=TraceCausalEffect_ELBO(),
        differs="model and guide have nets of the same names, so that pyro.infer.SVI trains those of the guide alone",
    )


@example
def sv_dkl(pyro_dir: Path) -> Published:
    """examples/contrib/gp/sv-dkl.py: a sparse Gaussian process over a convolutional net; each step sets its data."""
    net = script(pyro_dir, "contrib/gp/sv-dkl.py").CNN()
    x, y = images(512).reshape(-1, 1, 28, 28), torch.randint(10, (512,))
    kernel = gp.kernels.Warping(gp.kernels.RBF(input_dim=10, lengthscale=torch.ones(10)), iwarping_fn=net)
    made = gp.models.VariationalSparseGP(
        X=x[:70],
        y=None,
        kernel=kernel,
        Xu=x[:70].clone(),
        likelihood=gp.likelihoods.MultiClass(num_classes=10),
        latent_shape=torch.Size([10]),
        num_data=60000,
        whiten=True,
        jitter=2e-6,
    )

    def model(x: Tensor, y: Tensor) -> None:
        made.set_data(x, y)
        made.model()

    def guide(x: Tensor, y: Tensor) -> None:
        made.set_data(x, y)
        made.guide()

    return Published(
        (Part(model, guide, TraceMeanField_ELBO()),),
        pyro.optim.Adam({"lr": 0.01}),
        minibatches(x, y, size=64),
        ppvae.Pair(model, guide, [made]),
        (x, y),
        fit_loss=TraceMeanField_ELBO(),
        shared=True,
        differs="see the column nudged, losses of pyro.infer.SVI itself: Adam makes full steps "
        "of gradients that are all rounding; with SGD all losses agree",
    )
