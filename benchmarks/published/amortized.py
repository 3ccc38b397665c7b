"""Pairs with an encoder: a latent of each datum, and a guide that computes its posterior from the data."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn import functional

import ppvae
from published import Part, Published, example, images, minibatches, notebook, script


@example
def vae(pyro_dir: Path) -> Published:
    """examples/vae/vae.py."""
    vae, x = script(pyro_dir, "vae/vae.py").VAE(), images(1024)
    part = Part(vae.model, vae.guide, Trace_ELBO())
    return Published((part,), pyro.optim.Adam({"lr": 1e-3}), minibatches(x, size=256), vae, (x,))


@example
def vae_comparison(pyro_dir: Path) -> Published:
    """examples/vae/vae_comparison.py: its class is no module, and makes its own SVI."""
    x, args = images(512), Namespace(batch_size=128, jit=False)
    made = script(pyro_dir, "vae/vae_comparison.py").PyroVAEImpl(args, [], [])
    part = Part(made.model, made.guide, Trace_ELBO())
    pair = ppvae.Pair(made.model, made.guide, [made.vae_encoder, made.vae_decoder])
    return Published((part,), pyro.optim.Adam({"lr": 1e-3}), minibatches(x, size=128), pair, (x,))


def _ss_vae(pyro_dir: Path) -> tuple[Any, Part, Tensor, Tensor, Any]:
    made = script(pyro_dir, "vae/ss_vae_M2.py").SSVAE(
        z_dim=50, hidden_layers=[500], config_enum="parallel", aux_loss_multiplier=46
    )
    x, y = images(800), torch.eye(10)[torch.randint(10, (800,))]
    guide = config_enumerate(made.guide, "parallel", expand=True)
    part = Part(made.model, guide, TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False))
    labelled, unlabelled = minibatches(x, y, size=200), minibatches(x.flip(0), size=200)
    batches = [batch for both in zip(unlabelled, labelled, strict=True) for batch in both]
    return made, part, x, y, batches


@example
def ss_vae(pyro_dir: Path) -> Published:
    """examples/vae/ss_vae_M2.py: minibatches with and without labels, which are summed over."""
    made, part, x, _, batches = _ss_vae(pyro_dir)
    pair = ppvae.Pair(made.model, part.guide)
    optim = pyro.optim.Adam({"lr": 4.2e-4, "betas": (0.9, 0.999)})
    return Published((part,), optim, batches, pair, (x,))


@example
def ss_vae_aux(pyro_dir: Path) -> Published:
    """The same with its auxiliary loss: a second SVI with the same optimizer."""
    made, part, x, y, batches = _ss_vae(pyro_dir)
    aux = Part(made.model_classify, made.guide_classify, Trace_ELBO())

    def loss(model: Any, guide: Any, *batch: Any) -> Any:
        parts = (part.loss, model, guide), (aux.loss, aux.model, aux.guide)
        return sum(elbo.differentiable_loss(model, guide, *batch) for elbo, model, guide in parts)

    pair = ppvae.Pair(made.model, part.guide)
    optim = pyro.optim.Adam({"lr": 4.2e-4, "betas": (0.9, 0.999)})
    return Published((part, aux), optim, batches, pair, (x, y), fit_loss=loss)


@example
def cvae(pyro_dir: Path) -> Published:
    """examples/cvae: one quadrant of an image is given, the others are generated."""
    module, baseline = script(pyro_dir, "cvae/cvae.py"), script(pyro_dir, "cvae/baseline.py")
    y = images(512).reshape(-1, 28, 28)
    x = torch.full_like(y, -1.0)
    x[:, 14:, :14] = y[:, 14:, :14]
    made = module.CVAE(200, 500, 500, baseline.BaselineNet(500, 500))
    part = Part(made.model, made.guide, Trace_ELBO())
    return Published((part,), pyro.optim.Adam({"lr": 1e-3}), minibatches(x, y, size=128), made, (x, y))


def _dmm(pyro_dir: Path, num_iafs: int) -> Published:
    module = script(pyro_dir, "dmm.py")
    made = module.DMM(num_iafs=num_iafs, iaf_dim=100)
    lengths = torch.arange(6, 14).repeat(8).flip(0)
    series = (torch.rand(64, 13, 88) < 0.05).float()
    batches, annealing = [], torch.linspace(0.2, 1.0, 8).tolist()
    for i, factor in enumerate(annealing):
        index = torch.arange(8 * i, 8 * i + 8) % 64
        x, x_reversed, mask, packed = module.poly.get_mini_batch(index, series, lengths)
        batches.append(((x, x_reversed, mask, packed, factor), {}))

    def arguments(x: Tensor, lengths: Tensor) -> tuple[Any, ...]:
        return module.poly.get_mini_batch(torch.arange(len(x)), x, lengths)

    pair = ppvae.Pair(lambda *data: made.model(*arguments(*data)), lambda *data: made.guide(*arguments(*data)), [made])
    adam = {"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0}
    part = Part(made.model, made.guide, Trace_ELBO())
    return Published((part,), pyro.optim.ClippedAdam(adam), batches, pair, (series, lengths))


@example
def dmm(pyro_dir: Path) -> Published:
    """examples/dmm.py: series of unequal lengths, their KL weight rising with every step."""
    return _dmm(pyro_dir, 0)


@example
def dmm_iaf(pyro_dir: Path) -> Published:
    """The same with two inverse autoregressive flows in the guide."""
    return _dmm(pyro_dir, 2)


@example
def scanvi(pyro_dir: Path) -> Published:
    """examples/scanvi: counts of genes, with batch norm, cells with and without labels."""
    module = script(pyro_dir, "scanvi/scanvi.py")
    x, y = torch.poisson(3 * torch.rand(400, 50)), torch.eye(4)[torch.randint(4, (400,))]
    made = module.SCANVI(50, 4, l_loc=4.0, l_scale=0.5, scale_factor=1.0 / (100 * 50))
    guide = config_enumerate(made.guide, "parallel", expand=True)
    part = Part(made.model, guide, TraceEnum_ELBO(strict_enumeration_warning=False))
    options = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 5e-3}, "milestones": [20], "gamma": 0.2}
    optim = pyro.optim.MultiStepLR(options)
    pairs = zip(minibatches(x, size=100), minibatches(x, y, size=100), strict=True)
    batches = [batch for both in pairs for batch in both]
    return Published((part,), optim, batches, ppvae.Pair(made.model, guide), (x,))


@example
def prodlda(pyro_dir: Path) -> Published:
    """tutorial/source/prodlda.ipynb: topics of documents, with batch norm and dropout."""
    defined = notebook(pyro_dir, "prodlda.ipynb", defines=["class ProdLDA"], pyro=pyro, dist=dist, nn=nn, F=functional)
    x = torch.poisson(0.2 * torch.rand(256, 500))
    made = defined.ProdLDA(500, num_topics=20, hidden=100, dropout=0.2)
    part = Part(made.model, made.guide, TraceMeanField_ELBO())
    return Published((part,), pyro.optim.Adam({"lr": 1e-3}), minibatches(x, size=32), made, (x,))


@example
def air(pyro_dir: Path) -> Published:
    """examples/air: scenes of up to three objects, the subsample drawn in the guide, baselines, a rate for each net."""
    module = script(pyro_dir, "air/air.py")
    made = module.AIR(num_steps=3, x_size=50, window_size=28, z_what_size=50, rnn_hidden_size=256)
    x = torch.zeros(128, 50, 50)
    x[:, 10:38, 10:38] = images(128).reshape(-1, 28, 28)
    prior = [0.99, 0.5, 0.2]

    def rate(name: str) -> dict[str, float]:
        return {"lr": 1e-3 if "bl_" in name else 1e-4}

    def whole(function: Callable[..., Any]) -> Callable[[Tensor], Any]:
        return lambda x: function(x, len(x), z_pres_prior_p=prior.__getitem__)

    batches = [((x,), {"batch_size": 64, "z_pres_prior_p": prior.__getitem__})]
    part = Part(made.model, made.guide, TraceGraph_ELBO())
    pair = ppvae.Pair(whole(made.model), lambda x: made.guide(x, len(x)), [made])
    return Published((part,), pyro.optim.Adam(rate), batches, pair, (x,), fit_loss=TraceGraph_ELBO())
