"""Conditional VAEs on images: `python -m ppvae.examples.cvae` (Sohn et al. 2015).

"Learning structured output representation using deep conditional generative models". Two tasks:

- labels: x is an image, y its class label; the model draws images of a class, and a style carries over to others.
- quadrants: y is one, two or three quadrants of an image, x the rest of it. The model is compared with a network
  without a latent, whose p(x|y) knows no correlation between the pixels of x.

Trains on scikit-learn's embedded digits; `--dataset mnist --task quadrants` for the paper's experiment.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.cli.experiment import Experiment, InterruptedTraining, elbo_of_flag, fit_options
from ppvae.cli.flags import ImageArgs, check_used, to_json
from ppvae.cli.images import ImageData, likelihood, start_at_mean
from ppvae.cli.report import Report
from ppvae.data import Batches, Binarize
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.evaluate.classification import error_rate, label_posterior
from ppvae.evaluate.estimates import standard_error
from ppvae.evaluate.marginal import log_marginal
from ppvae.examples.figures import write_completion_figures, write_label_figures
from ppvae.examples.quadrants import Baseline, BinarizeAndSplit, Completion, Quadrants, completions
from ppvae.infer import Run, fit
from ppvae.models import CVAE
from ppvae.nn import MLP, ConditionalMLP, ConditionalSequential, OneHot, Rescale, Reshape
from ppvae.pair import Batch

Prior = Literal["standard", "conditional"]


@dataclass(frozen=True)
class Args(ImageArgs):
    """Train a conditional VAE on images; report its ELBO and log p(x|y)."""

    task: Literal["labels", "quadrants"] = "labels"
    """What is given: the class label of an image, or some of its quadrants."""
    num_quadrants: Literal[1, 2, 3] = 1
    """Quadrants that are given: the bottom left one, the left half, or all but the bottom right one."""
    conditioning: Literal["concat", "film", "batch_norm", "attention"] = "concat"
    """How y enters the networks: beside their input, or in each of their hidden layers."""
    prior: Prior | None = None
    """p(z), which knows nothing of y, or a learned p(z|y); by default standard for labels, conditional for
    quadrants."""
    latent_dim: int | None = None
    """Dimensions of z; by default 16 for labels, 50 for quadrants."""
    hidden_dims: tuple[int, ...] | None = None
    """Widths of the hidden layers of every network, from the data to z (those of p(x|z,y) are reversed); by default
    200 200 on the digits, 500 500 on larger sets."""
    activation: str = "relu"
    """Activation of the hidden layers: relu, tanh, gelu, ..."""
    dropout: float = 0.0
    """Probability with which a hidden unit is dropped while training, in every network."""
    beta: float = 1.0
    """Weight of the KL term while training."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_used(self, "task", num_quadrants=("quadrants",))
        if self.latent_dim is not None:
            check_count("--latent-dim", self.latent_dim)
        args = super().resolved()
        prior: Prior = "standard" if args.task == "labels" else "conditional"
        hidden_dims = (200, 200) if args.dataset == "digits" else (500, 500)
        return replace(
            args,
            prior=args.prior or prior,
            latent_dim=(16 if args.task == "labels" else 50) if args.latent_dim is None else args.latent_dim,
            hidden_dims=hidden_dims if args.hidden_dims is None else args.hidden_dims,
        )


def build(args: Args, data: ImageData) -> CVAE | Completion:
    """The pair that the flags describe."""
    mean = data.train[0].float().mean(0, keepdim=True)
    context_shape, embed = _condition(args, data)
    if args.task == "labels":
        return _cvae(args, mean, data.levels, context_shape, embed)
    x, _ = Quadrants(data.event_shape, args.num_quadrants).split(mean)
    cvae = _cvae(args, x, data.levels, context_shape, embed)
    assert args.hidden_dims is not None
    net = MLP(context_shape, args.hidden_dims, _parameters(args, x, data.levels), **_layers(args))
    return Completion(cvae, Baseline(_likelihood(args, net, x, data.levels, nn.Sequential(embed, net))))


def _condition(args: Args, data: ImageData) -> tuple[tuple[int, ...], nn.Module]:
    """The event shape of what the networks see of y, and the module that makes it of y."""
    if args.task == "labels":
        return (data.num_classes,), OneHot(data.num_classes)
    size = len(Quadrants(data.event_shape, args.num_quadrants).given)
    half_row = data.event_shape[-1] // 2  # the tokens of attention
    shape = (size // half_row, half_row) if args.conditioning == "attention" else (size,)
    unit = [Rescale(1 / (data.levels - 1))] if args.likelihood == "categorical" else []  # integer levels to [0, 1]
    return shape, nn.Sequential(Reshape(size, shape), *unit)


def _cvae(args: Args, mean: Tensor, levels: int, context_shape: tuple[int, ...], embed: nn.Module) -> CVAE:
    """The conditional VAE of data whose mean is `mean`, of shape (1, *event)."""
    assert args.latent_dim is not None
    assert args.hidden_dims is not None
    k, shape, layers = args.latent_dim, tuple(mean.shape[1:]), _layers(args)
    conditional: dict[str, Any] = {"conditioning": args.conditioning, "embed": embed, **layers}
    encoder: nn.Module = ConditionalMLP(shape, context_shape, args.hidden_dims, (2, k), **conditional)
    if args.likelihood == "categorical":
        encoder = ConditionalSequential(Rescale(1 / (levels - 1)), encoder)
    out_shape = _parameters(args, mean, levels)
    decoder = ConditionalMLP(k, context_shape, args.hidden_dims[::-1], out_shape, **conditional)
    p_z: nn.Module = StandardNormal(k)
    if args.prior == "conditional":
        hidden = args.hidden_dims if args.task == "quadrants" else ()  # of a label, one row of a table
        p_z = ConditionalNormal(nn.Sequential(embed, MLP(context_shape, hidden, (2, k), **layers)))
    return CVAE(p_z, _likelihood(args, decoder, mean, levels), ConditionalNormal(encoder), beta=args.beta)


def _layers(args: Args) -> dict[str, Any]:
    return {"activation": args.activation, "dropout": args.dropout}


def _parameters(args: Args, mean: Tensor, levels: int) -> tuple[int, ...]:
    """The shape of what a network says of one x."""
    return (*([levels] if args.likelihood == "categorical" else []), *mean.shape[1:])


def _likelihood(args: Args, net: nn.Module, mean: Tensor, levels: int, whole: nn.Module | None = None) -> nn.Module:
    """The likelihood that `net`, or `whole` with `net` at its end, parameterises."""
    if args.likelihood == "bernoulli":
        start_at_mean(net, mean)
    return likelihood(args, whole or net, levels)


def arguments(args: Args, x: Tensor, y: Tensor) -> Batch:
    """Images and labels, or the rest of the images and what is given of them."""
    return (x, y) if args.task == "labels" else Quadrants(x.shape[1:], args.num_quadrants, x.device).split(x)


def batches(args: Args, data: ImageData, device: torch.device) -> Batches:
    """Minibatches of the arguments; where pixels are drawn anew, a whole image at a time."""
    options: dict[str, Any] = {"batch_size": args.batch_size, "seed": args.seed, "device": device}
    if args.binarize != "dynamic":
        return Batches(*arguments(args, *data.train), **options)
    if args.task == "labels":
        return Batches(*data.train, transform=Binarize(), **options)
    split = BinarizeAndSplit(Quadrants(data.event_shape, args.num_quadrants, device))
    return Batches(data.train[0], transform=split, **options)


def train_baseline(pair: CVAE | Completion, args: Args, data: ImageData, device: torch.device, out: Path) -> None:
    """Trains the baseline as the CVAE will be, into the folder `baseline` of the run."""
    if not isinstance(pair, Completion):
        return
    folder = out / "baseline"
    assert args.epochs is not None
    run = fit(
        pair.baseline,
        batches(args, data, device),
        arguments(args, *data.valid) if len(data.valid[0]) else None,
        loss=elbo_of_flag(args),
        patience=args.patience,
        out=folder,
        resume=args.resume,
        config={"args": to_json(args)},
        **fit_options(args, device, args.epochs),
    )
    if run.stopped == "interrupted":
        raise InterruptedTraining(f"stopped in the training of the baseline; continue with --resume --out {out}")


def measure(pair: CVAE | Completion, args: Args, data: ImageData) -> Report:
    """The error of the label by Bayes' rule, or the likelihoods of CVAE and baseline and their difference."""
    images, labels = (t[: args.num_eval] for t in data.test)
    if not isinstance(pair, Completion):
        few = min(args.num_samples, 100)
        bayes = label_posterior(pair, images, num_classes=data.num_classes, num_samples=few, seed=args.seed)
        return {f"error in %, p(y|x) by Bayes, {len(images)} test images": error_rate(bayes, labels)}
    x, y = arguments(args, images, labels)
    ours = log_marginal(pair.cvae, x, y, num_samples=args.num_samples, seed=args.seed).values
    theirs = log_marginal(pair.baseline, x, y, num_samples=1).values  # exact
    measured = {f"CVAE, K={args.num_samples}": ours, "baseline": theirs, "CVAE - baseline": ours - theirs}
    return {
        f"test log p(rest|given) in nats, {name}": {"mean": float(values.mean()), "std_error": standard_error(values)}
        for name, values in measured.items()
    }


def draw(pair: CVAE | Completion, args: Args, data: ImageData, run: Run) -> None:
    """Writes the figures of the task."""
    if not isinstance(pair, Completion):
        write_label_figures(pair, args, data, run)
        return
    quadrants = Quadrants(data.event_shape, args.num_quadrants)
    write_completion_figures(completions(pair, quadrants, data), run)


EXPERIMENT = Experiment(
    "cvae",
    Args,
    build,
    draw,
    arguments=arguments,
    batches=batches,
    first=train_baseline,
    symbol="log p(x|y)",
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
