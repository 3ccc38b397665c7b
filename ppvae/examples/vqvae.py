"""A VQ-VAE on images: `python -m ppvae.examples.vqvae` (van den Oord et al. 2017, arXiv 1711.00937).

Trains the codes of scikit-learn's embedded digits, then a prior of their words; `--dataset mnist` and `--dataset
cifar10 --likelihood discretized-logistic --encoder conv` for larger images. Reports log p(x) of the words of every
prior.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ppvae import plot
from ppvae._validate import check_count, check_number
from ppvae.cli.experiment import Experiment, InterruptedTraining, elbo_of_flag, fit_options, image_batches
from ppvae.cli.flags import check_used, flag, to_json
from ppvae.cli.images import ImageData
from ppvae.cli.report import Report
from ppvae.data import binarize
from ppvae.distributions import AutoregressivePrior, CategoricalPrior, Codebook, CodePosterior, UniformCategorical
from ppvae.evaluate import fit_temperature, log_marginal
from ppvae.evaluate.estimates import mean_over_data
from ppvae.examples.figures import pixels
from ppvae.examples.nets import NetArgs, encoder, observed
from ppvae.infer import Run, fit
from ppvae.models import VQVAE
from ppvae.models.base import mean_of
from ppvae.nn import MLP, CausalTransformer, ConvDecoder

EXACT_WORDS = 2**16
"""Up to so many words log p(x) is also summed over all of them."""

SHOWN = 8
"""Rows and columns of a figure."""


@dataclass(frozen=True)
class Args(NetArgs):
    """Train a VQ-VAE on images, then a prior of its codes; report the bound and log p(x) with each prior."""

    epochs: int | None = None
    """Passes over the training data that the prior is trained for; by default 60 on the digits, 20 on larger sets."""
    codes_epochs: int | None = None
    """Passes that encoder, decoder and codes are trained for first; by default 150 on the digits, 50 on larger sets."""
    num_codes: int | None = None
    """Codes, the letters of the alphabet; by default 8 on the digits, 128 on larger sets."""
    num_positions: int | None = None
    """Letters of the word of an image; by default 4 on the digits, 16 on larger sets."""
    latent_dim: int = 8
    """Dimensions of a code."""
    codebook: Literal["average", "gradient"] = "average"
    """How codes are learned: by moving averages of what they stand for, or by a gradient of their own."""
    cosine: bool = False
    """Compare codes by their angle, not by their distance."""
    commitment: float = 0.25
    """Weight of the term that keeps the encoder near its codes, in training alone."""
    prior: Literal["autoregressive", "independent"] = "autoregressive"
    """p(k): a causal Transformer over the positions, or letters that are independent."""
    prior_dim: int = 64
    """Width of the Transformer."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_used(self, "prior", prior_dim=("autoregressive",))
        check_number("--commitment", self.commitment, at_least=0)
        epochs, codes_epochs, num_codes, num_positions = (
            (60, 150, 8, 4) if self.dataset == "digits" else (20, 50, 128, 16)
        )
        args = replace(
            self,
            epochs=epochs if self.epochs is None else self.epochs,
            codes_epochs=codes_epochs if self.codes_epochs is None else self.codes_epochs,
            num_codes=num_codes if self.num_codes is None else self.num_codes,
            num_positions=num_positions if self.num_positions is None else self.num_positions,
        )
        for name in ("codes_epochs", "num_codes", "num_positions", "prior_dim"):
            check_count(flag(name), getattr(args, name))
        args = super(Args, args).resolved()
        return replace(args, codes_epochs=1) if args.smoke else args


def build(args: Args, data: ImageData) -> VQVAE:
    """The pair that the flags describe, with the prior that is trained last."""
    assert args.num_codes is not None
    assert args.num_positions is not None
    size, shape = (args.num_codes, args.num_positions), (args.num_positions, args.latent_dim)
    codebook = Codebook(args.num_codes, args.latent_dim, learned=args.codebook, cosine=args.cosine)
    kind = MLP if args.encoder == "mlp" else ConvDecoder
    p_k: nn.Module = CategoricalPrior(*size)
    if args.prior == "autoregressive":
        p_k = AutoregressivePrior(CausalTransformer(*size, dim=args.prior_dim))
    return VQVAE(
        p_k,
        observed(args, data, lambda out_shape: kind(shape, args.widths()[::-1], out_shape, **args.layers())),
        CodePosterior(encoder(args, data, shape), codebook),
        commitment=args.commitment,
    )


def train_codes(pair: VQVAE, args: Args, data: ImageData, device: torch.device, out: Path) -> None:
    """Trains all but the prior, under a uniform one, into the folder `codes` of the run; freezes it."""
    assert args.num_codes is not None
    assert args.num_positions is not None
    assert args.codes_epochs is not None
    prior, pair.p_k = pair.p_k, UniformCategorical(args.num_codes, args.num_positions)
    run = fit(
        pair,
        image_batches(args, data, device),
        data.valid[0] if len(data.valid[0]) else None,
        loss=elbo_of_flag(args),
        out=out / "codes",
        resume=args.resume,
        config={"args": to_json(args)},
        **fit_options(args, device, args.codes_epochs),
    )
    if run.stopped == "interrupted":
        raise InterruptedTraining(f"stopped in codes; continue with --resume --out {out}")
    pair.requires_grad_(False)
    pair.p_k = prior


def choose_temperature(pair: VQVAE, args: Args, data: ImageData, run: Run) -> None:
    """Fits the guide's temperature on validation images, or training images where there are none."""
    x = data.valid[0] if len(data.valid[0]) else training_images(args, data)
    pair.eval()
    fit_temperature(pair, pair.q_k_given_x.temperature, x[:100], num_samples=min(50, args.num_samples), seed=args.seed)


def measure(pair: VQVAE, args: Args, data: ImageData) -> Report:
    """How many codes are in use; with each prior log p(x), by samples and exactly, and the bound at the nearest codes.

    The samples of the trained prior are in the table above.
    """
    device = next(pair.parameters()).device
    x = data.test[0][: args.num_eval].to(device)
    used = pair.codebook.perplexity(pair.codes(training_images(args, data).to(device)))
    measured: Report = {"perplexity of the codes": {"mean": float(used), "std_error": None}}
    for name, prior in (other_priors(pair, args, data) | {args.prior: pair.p_k}).items():
        other = copy.deepcopy(pair)
        other.p_k = prior
        found = {}
        if prior is not pair.p_k:
            found["log p(x)"] = log_marginal(other, x, num_samples=args.num_samples, seed=args.seed).values
        if pair.codebook.num_codes ** int(pair.p_k().event_shape[0]) <= EXACT_WORDS:
            found["log p(x), by all words"] = other.log_prob(x).cpu()
        other.q_k_given_x.temperature.zero_()
        found["bound at the nearest codes"] = log_marginal(other, x, num_samples=1).values
        measured |= {f"{name} prior, {what}": mean_over_data(values) for what, values in found.items()}
    return measured


def other_priors(pair: VQVAE, args: Args, data: ImageData) -> dict[str, nn.Module]:
    """The priors that the trained one is compared with: uniform, and the shares of letters in the training images."""
    device = next(pair.parameters()).device
    codes = pair.codes(training_images(args, data).to(device))
    size = (pair.codebook.num_codes, codes.shape[-1])
    independent = CategoricalPrior(*size).to(device)
    counts = torch.nn.functional.one_hot(codes, size[0]).sum(0)
    with torch.no_grad():
        independent.logits.copy_((counts + 1).log())  # no letter is impossible because it was not seen
    return {"uniform": UniformCategorical(*size).to(device), "independent": independent}


def training_images(args: Args, data: ImageData) -> Tensor:
    """The training images as the pair sees them, binarized once where they are."""
    return binarize(data.train[0]) if args.binarize == "dynamic" else data.train[0]


@torch.no_grad()
def draw(pair: VQVAE, args: Args, data: ImageData, run: Run) -> None:
    """Writes reconstructions, samples, also of other priors, what letters say, and training curves."""
    assert run.folder is not None
    pair.eval()
    device = next(pair.parameters()).device
    x = data.test[0][:20].to(device)
    torch.manual_seed(0)
    priors = other_priors(pair, args, data) | {args.prior: pair.p_k}
    drawn = [mean_of(pair.decode(prior().sample((SHOWN,)))) for prior in priors.values()]
    figures = {
        "reconstructions": plot.reconstructions(pixels(data, x), pixels(data, pair.reconstruct(x))),
        "samples": plot.samples(pixels(data, pair.sample(SHOWN**2, mean=True))),
        "priors": plot.by_condition(pixels(data, torch.stack(drawn, 1)), labels=[*priors]),
        "letters": _letters(pair, data, x[0]),
        "training": plot.training_curves(run.history),
    }
    for name, figure in figures.items():
        plot.save(figure, run.folder / "figures" / f"{name}.png")


def _letters(pair: VQVAE, data: ImageData, x: Tensor) -> Figure:
    """An image with one letter of its word after the other, a row each, replaced by the first few of the alphabet."""
    k = pair.codes(x)
    letters = torch.arange(min(SHOWN, pair.codebook.num_codes), device=k.device)
    places = min(SHOWN, len(k))
    words = k.expand(places, len(letters), -1).clone()
    words[torch.arange(places), :, torch.arange(places)] = letters
    images = pixels(data, mean_of(pair.decode(words)))
    return plot.by_condition(
        images, labels=[str(i) for i in letters.tolist()], x=pixels(data, x.expand(places, *x.shape))
    )


EXPERIMENT = Experiment("vqvae", Args, build, draw, first=train_codes, after=choose_temperature, measure=measure)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
