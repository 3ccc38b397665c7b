"""The pictures of an image VAE."""

from __future__ import annotations

import torch
from torch import Tensor

from ppvae import plot
from ppvae.examples.experiment import ImageData
from ppvae.infer import Run
from ppvae.models.queries import VAEQueries, mean_of


@torch.no_grad()
def write_figures(pair: VAEQueries, data: ImageData, run: Run) -> None:
    """Writes reconstructions, samples, latent space, traversal, interpolations and training curves.

    Args:
        pair: a trained VAE.
        data: what it was trained on.
        run: its run, with a folder.
    """
    assert run.folder is not None
    pair.eval()
    device = next(pair.parameters()).device
    x, y = (t[:1000] for t in data.test)
    x = x.to(device)

    def pixels(images: Tensor) -> Tensor:
        """Intensities in [0, 1]: integer levels are scaled."""
        scale = 1.0 if data.test[0].is_floating_point() else 1 / (data.levels - 1)
        return (images * scale).clamp(0, 1).cpu()

    torch.manual_seed(0)
    codes = pair.encode(x).mean
    figures = {
        "reconstructions": plot.reconstructions(pixels(x[:20]), pixels(pair.reconstruct(x[:20]))),
        "samples": plot.samples(pixels(pair.sample(64, mean=True))),
        "latent": plot.latent_scatter(codes.cpu(), y),
        "interpolation": plot.interpolation(pixels(pair.interpolate(x[:5], x[5:10]))),
        "training": plot.training_curves(run.history),
    }
    spread = torch.linspace(-3, 3, 9)
    active = max(1, min(8, int((codes.var(0) > 0.01).sum())))  # Burda et al. 2016; the others show nothing
    order = codes.var(0).argsort(descending=True)[:active]
    grid = torch.zeros(len(order), len(spread), codes.shape[-1], device=device)
    grid[torch.arange(len(order)), :, order] = spread.to(device)
    figures["traversal"] = plot.traversal(pixels(mean_of(pair.decode(grid))), spread)
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")
