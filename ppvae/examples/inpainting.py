"""A part of an image given, the rest drawn: `python -m ppvae.examples.inpainting` (Harvey et al. 2022, 2102.12037).

Trains a VAE on whole images, then, with its decoder as it is, a partial encoder on random rectangles of them, to cover
what the encoder of the whole gives or by the ELBO of the part; reports log p(rest | part) = log p(x) − log p(part), and
draws completions of test images.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ppvae import plot
from ppvae._validate import check_count
from ppvae.cli.experiment import Experiment, InterruptedTraining, elbo_of_flag, fit_options, image_batches
from ppvae.cli.flags import to_json
from ppvae.cli.images import ImageData
from ppvae.cli.report import Report
from ppvae.data import Batches, Binarize, RandomPart
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.evaluate import PartOf, condition, impute
from ppvae.evaluate.estimates import mean_over_data
from ppvae.examples.figures import pixels
from ppvae.examples.nets import NetArgs, decoder, encoder
from ppvae.infer import Run, fit
from ppvae.means import mean_of
from ppvae.models import VAE
from ppvae.nn import MLP, ConcatInputs, Rescale
from ppvae.pair import Batch

NUM_DRAWN = 6
"""Completions of each image."""
NUM_CHOSEN = 1000
"""Draws of the encoder, among which they are drawn by their weights."""


@dataclass(frozen=True)
class Args(NetArgs):
    """Train a VAE and a partial encoder for it; complete images of which a part is seen."""

    seen: Literal["upper", "left", "quadrant"] = "upper"
    """Part of the test images that is seen."""
    part_dims: tuple[int, ...] = (200, 200)
    """Widths of the partial encoder's hidden layers."""
    train_by: Literal["matching", "elbo"] = "matching"
    """What the partial encoder is trained by: to cover the encoder of the whole, or the ELBO of the part."""
    vae_epochs: int | None = None
    """Passes over the training data for the VAE; by default as many as for the partial encoder."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        if self.vae_epochs is not None:
            check_count("--vae-epochs", self.vae_epochs)
        done = super().resolved()
        return replace(done, vae_epochs=done.epochs if self.vae_epochs is None or self.smoke else self.vae_epochs)


def build(args: Args, data: ImageData) -> PartOf:
    """The pair of the part."""
    k, shape = args.latent_dim, data.event_shape
    vae = VAE(StandardNormal(k), decoder(args, data), ConditionalNormal(encoder(args, data, (2, k))))
    net = MLP(2 * math.prod(shape), args.part_dims, (2, k), activation=args.activation, norm=args.norm)
    scale = 1 / (data.levels - 1) if args.likelihood == "categorical" else 1.0
    return PartOf(vae, ConditionalNormal(_OfBoth(Rescale(scale), ConcatInputs((shape, shape), net))))


class _OfBoth(nn.Module):
    """A net of an image, as intensities, and of which of its pixels are seen."""

    def __init__(self, intensities: nn.Module, net: ConcatInputs) -> None:
        super().__init__()
        self.intensities, self.net, self.out_shape = intensities, net, net.out_shape

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Maps images and what is seen of them to the parameters of the encoder."""
        return self.net(self.intensities(x), seen)


def with_part(args: Args, x: Tensor, y: Tensor) -> Batch:
    """Images, and the part of them that is seen."""
    height, width = x.shape[-2:]
    upper, left = torch.arange(height).reshape(height, 1) < height // 2, torch.arange(width) < width // 2
    seen = {"upper": upper | (left & False), "left": left | (upper & False), "quadrant": upper & left}[args.seen]
    return x, seen.expand(x.shape).to(x.device)


def random_parts(args: Args, data: ImageData, device: torch.device) -> Batches:
    """Training images, and a rectangle of each that is seen, another at every visit."""
    transform = RandomPart(Binarize() if args.binarize == "dynamic" else None)
    return Batches(data.train[0], batch_size=args.batch_size, transform=transform, seed=args.seed, device=device)


def train_whole(pair: PartOf, args: Args, data: ImageData, device: torch.device, out: Path) -> None:
    """Trains the VAE on whole images, in a folder of its own, and holds it fixed."""
    assert args.vae_epochs is not None
    options = fit_options(args, device, args.vae_epochs)
    config, batches = {"args": to_json(args)}, image_batches(args, data, device)
    valid = data.valid[0] if len(data.valid[0]) else None
    loss = elbo_of_flag(args)
    run = fit(pair.pair, batches, valid, loss=loss, out=out / "vae", resume=args.resume, config=config, **options)
    if run.stopped == "interrupted":
        raise InterruptedTraining(f"stopped in vae; continue with --resume --out {out}")
    pair.pair.requires_grad_(False)


def trained(args: Args, pair: PartOf) -> nn.Module:
    """The pair of the part, or the one that matches its encoder to that of the whole."""
    return pair.matching() if args.train_by == "matching" else pair


def measure(pair: PartOf, args: Args, data: ImageData) -> Report:
    """Log p(rest | part) of test images."""
    x, seen = _test_images(pair, args, data, args.num_eval)
    found = condition(pair, x, seen, num_samples=1, num_particles=args.num_samples, seed=args.seed)
    return {"log p(rest | part), nats": mean_over_data(found.log_prob)}


@torch.no_grad()
def draw(pair: PartOf, args: Args, data: ImageData, run: Run) -> None:
    """Writes test images, what is seen of them, and completions; and training curves."""
    assert run.folder is not None
    images, labels = data.test
    first = [int((labels == c).nonzero()[0, 0]) for c in labels.unique()][:10]
    x, seen = (t[first] for t in _test_images(pair, args, data, len(images)))
    completed = impute(pair, x, seen, num_samples=NUM_DRAWN, num_particles=NUM_CHOSEN, seed=args.seed)
    means = mean_of(pair.pair.decode(completed.latents["z"].to(x.device)))
    x, seen, rest = pixels(data, x), seen.cpu(), pixels(data, means)
    columns = torch.cat([torch.where(seen, x, 0.5).unsqueeze(0), torch.where(seen, x, rest)])
    figures = {
        "completions": plot.by_condition(
            columns.movedim(0, 1), labels=["seen", *map(str, range(1, NUM_DRAWN + 1))], x=x
        ),
        "training": plot.training_curves(run.history),
    }
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


def _test_images(pair: PartOf, args: Args, data: ImageData, num: int) -> tuple[Tensor, Tensor]:
    device = next(pair.parameters()).device
    x, seen = with_part(args, *(t[:num] for t in data.test))
    return x.to(device), seen.to(device)


EXPERIMENT = Experiment(
    "inpainting",
    Args,
    build,
    draw,
    arguments=with_part,
    batches=random_parts,
    first=train_whole,
    trained=trained,
    symbol="log p(part)",
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
