"""What the units of a latent hold: how many are active, the KL of each, and what each does to an image."""

from __future__ import annotations

import torch
from torch import nn

from ppvae import plot
from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import ImageData
from ppvae.cli.report import Report
from ppvae.evaluate.latents import latent_report
from ppvae.examples.figures import pixels, swept, write_figures
from ppvae.infer import Run
from ppvae.means import code_of, mean_of
from ppvae.models import VAE

NUM_TRAVERSED = 3
"""Test images from whose codes the latent is traversed."""


def active_units(pair: nn.Module, args: ImageArgs, data: ImageData) -> Report:
    """The number of active units of each latent site over the test images (Burda et al. 2016)."""
    x = data.test[0][: args.num_eval].to(next(pair.parameters()).device)
    sites = latent_report(pair, x, seed=args.seed).sites
    return {
        f"active units of {name} of {site.active.numel()}": {"mean": int(site.active.sum()), "std_error": None}
        for name, site in sites.items()
        if site.active is not None
    }


@torch.no_grad()
def write_unit_figures(pair: VAE, args: ImageArgs, data: ImageData, run: Run) -> None:
    """Writes the pictures of a VAE, the KL of each unit, and traversals from the codes of some test images.

    Args:
        pair: a trained VAE whose posterior is a diagonal normal, with the prior N(0, I).
        args: its flags.
        data: what it was trained on.
        run: its run, with a folder.
    """
    write_figures(pair, args, data, run)
    assert run.folder is not None
    x = data.test[0][: args.num_eval].to(next(pair.parameters()).device)
    site = latent_report(pair, x, seed=args.seed).sites["z"]
    assert site.kl_per_dim is not None
    spread = torch.linspace(-3, 3, 9)
    order = site.kl_per_dim.argsort(descending=True)[:8]
    figures = {"kl": plot.kl_per_dimension(site.kl_per_dim, site.active)}
    for i, z in enumerate(code_of(pair.encode(x[:NUM_TRAVERSED])), 1):
        images = mean_of(pair.decode(swept(z, order.to(z.device), spread.to(z))))
        figures[f"traversal_x{i}"] = plot.traversal(pixels(data, images), spread, units=order.tolist())
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")
