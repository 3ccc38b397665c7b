"""The pictures of image VAEs, with labels, with several levels of latents, or with neither."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppvae import plot
from ppvae.cli.flags import ImageArgs
from ppvae.cli.images import ImageData
from ppvae.infer import Run
from ppvae.models.base import ConditionalQueries, VAEQueries, code_of, mean_of
from ppvae.models.levels import Levels

ACTIVE = 0.01
"""The least variance of the codes in an active unit (Burda et al. 2016)."""


@torch.no_grad()
def write_figures(pair: VAEQueries, args: ImageArgs, data: ImageData, run: Run) -> None:
    """Writes reconstructions, samples, latent space, traversal, interpolations and training curves.

    Args:
        pair: a trained VAE.
        args: its flags.
        data: what it was trained on.
        run: its run, with a folder.
    """
    assert run.folder is not None
    pair.eval()
    device = next(pair.parameters()).device
    x, y = (t[:1000] for t in data.test)
    x = x.to(device)

    torch.manual_seed(0)
    codes, (centre, scale) = code_of(pair.encode(x)), _spread_of(pair.p_z())
    figures = {
        "reconstructions": plot.reconstructions(pixels(data, x[:20]), pixels(data, pair.reconstruct(x[:20]))),
        "samples": plot.samples(pixels(data, pair.sample(64, mean=True))),
        **_plane_of(codes, y),
        "interpolation": _interpolation(pair, data, x),
        "training": plot.training_curves(run.history),
    }
    spread = torch.linspace(-3, 3, 9)
    active = max(1, min(8, int((codes.var(0) > ACTIVE).sum())))  # the others show nothing
    order = codes.var(0).argsort(descending=True)[:active]
    values = centre[order, None] + scale[order, None] * spread.to(device)
    images = pixels(data, mean_of(pair.decode(swept(centre, order, values))))
    figures["traversal"] = plot.traversal(images, spread, units=order.tolist())
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


def _interpolation(pair: VAEQueries | Levels, data: ImageData, x: Tensor) -> Figure:
    """Lines between the codes of five images and the five after them, fewer of a small set, with these images."""
    lines = max(1, min(5, len(x) // 2))
    ends = x[:lines], x[-lines:] if len(x) < 2 * lines else x[lines : 2 * lines]
    return plot.interpolation(pixels(data, pair.interpolate(*ends)), (pixels(data, ends[0]), pixels(data, ends[1])))


@torch.no_grad()
def write_level_figures(pair: Levels, args: ImageArgs, data: ImageData, run: Run) -> None:
    """Writes reconstructions, also from one level alone, samples, the top level, interpolations and curves.

    Args:
        pair: a trained model with latents z1 … zL.
        args: its flags.
        data: what it was trained on.
        run: its run, with a folder.
    """
    assert run.folder is not None
    pair.eval()
    device = next(pair.parameters()).device
    x, y = (t[:1000] for t in data.test)
    x = x.to(device)

    torch.manual_seed(0)
    codes = {name: code_of(q_z) for name, q_z in pair.encode(x).items()}
    alone = [mean_of(pair.decode({name: z[:8]})) for name, z in codes.items()]
    figures = {
        "reconstructions": plot.reconstructions(pixels(data, x[:20]), pixels(data, pair.reconstruct(x[:20]))),
        "levels": plot.by_condition(pixels(data, torch.stack(alone, 1)), labels=list(codes), x=pixels(data, x[:8])),
        "samples": plot.samples(pixels(data, pair.sample(64, mean=True))),
        **_plane_of(list(codes.values())[-1], y),
        "interpolation": _interpolation(pair, data, x),
        "training": plot.training_curves(run.history),
    }
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


@torch.no_grad()
def write_label_figures(pair: ConditionalQueries, args: ImageArgs, data: ImageData, run: Run) -> None:
    """Writes class-conditional samples, style transfer, latent space and training curves.

    Args:
        pair: a trained model of images x with class labels y.
        args: its flags.
        data: what it was trained on.
        run: its run, with a folder.
    """
    assert run.folder is not None
    pair.eval()
    device = next(pair.parameters()).device
    x, y = (t[:1000].to(device) for t in data.test)
    classes = torch.arange(data.num_classes, device=device)
    names = [str(c) for c in classes.tolist()]
    torch.manual_seed(0)
    drawn = pair.p_z(classes).sample((8,) if pair.p_z(classes).batch_shape else (8, 1))
    first = torch.stack([(y == c).nonzero()[0, 0] for c in classes])  # a datum of each class, in order
    transferred = pair.style_transfer(x[first], y[first], classes).transpose(0, 1)
    figures = {
        "samples": plot.by_condition(pixels(data, mean_of(pair.decode(drawn, classes))), labels=names),
        "style_transfer": plot.by_condition(pixels(data, transferred), labels=names, x=pixels(data, x[first])),
        **_plane_of(code_of(pair.encode(x, y)), y),
        "training": plot.training_curves(run.history),
    }
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


def _plane_of(codes: Tensor, y: Tensor) -> dict[str, Figure]:
    """The picture of the codes (n, k) by class, with t-SNE; none of a latent of one dimension, which has no plane."""
    if codes.shape[-1] == 1:
        return {}
    return {"latent": plot.latent_scatter(codes.cpu(), y.cpu(), active=codes.var(0).cpu() > ACTIVE, tsne=True)}


def write_completion_figures(columns: dict[str, Tensor], run: Run) -> None:
    """Writes completions of partly given images, a row each, and training curves.

    Args:
        columns: intensities (r, channels, h, w) by the name of their column, from left to right.
        run: the run of the model that made them, with a folder.
    """
    assert run.folder is not None
    grid = torch.stack(list(columns.values()), 1)
    figures = {
        "completions": plot.by_condition(grid, labels=list(columns)),
        "training": plot.training_curves(run.history),
    }
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


def swept(z: Tensor, units: Tensor, values: Tensor) -> Tensor:
    """Copies of a code, each with another value of one of its units.

    Args:
        z: the code, (k,).
        units: numbers of the units, (r,).
        values: what each takes in turn, (steps,) or (r, steps).

    Returns:
        A row for each unit, (r, steps, k).
    """
    grid = z.expand(len(units), values.shape[-1], -1).clone()
    grid[torch.arange(len(units)), :, units] = values
    return grid


def _spread_of(p_z: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a prior, (k,) each; of draws where they are not known."""
    try:
        return p_z.mean, p_z.variance.sqrt()
    except NotImplementedError:
        draws = p_z.sample((1000,))
        return draws.mean(0), draws.std(0)


def pixels(data: ImageData, images: Tensor) -> Tensor:
    """Intensities in [0, 1]: integer levels are scaled."""
    scale = 1.0 if data.test[0].is_floating_point() else 1 / (data.levels - 1)
    return (images * scale).clamp(0, 1).cpu()
