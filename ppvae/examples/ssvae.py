"""Semi-supervised VAEs on images: `python -m ppvae.examples.ssvae` (Kingma et al. 2014, arXiv 1406.5298).

Few training images keep their labels, the others are learned from without. Trains on scikit-learn's embedded digits;
`--dataset mnist --variant m1m2 --num-labels 100` for the paper's experiment.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

from ppvae.data import Batches, Binarize, JointBatches, split_labels
from ppvae.distributions import ConditionalCategorical, ConditionalNormal, StandardNormal, UniformCategorical
from ppvae.evaluate.labels import error_rate, label_posterior
from ppvae.evaluate.report import Report
from ppvae.examples.experiment import Experiment, InterruptedTraining, fit_options, image_batches
from ppvae.examples.figures import write_label_figures
from ppvae.examples.flags import ExperimentArgs
from ppvae.examples.images import ImageData, likelihood, start_at_mean
from ppvae.infer import RunFolder, fit
from ppvae.models import SSVAE, VAE, StackedSSVAE
from ppvae.nn import MLP, ConditionalMLP, OneHot

CODE_DIM = 50
"""Dimensions of z1, the code of M1."""


@dataclass(frozen=True)
class Args(ExperimentArgs):
    """Train a semi-supervised VAE on images; report its test error, ELBO and log p(x)."""

    variant: Literal["m2", "m1m2"] = "m2"
    """m2: a label and a style explain the image; m1m2: they explain the code of a VAE that was trained first."""
    num_labels: int = 100
    """Training images that keep their labels, drawn by --seed, as many of each class as of any other."""
    alpha: float = 0.1
    """Weight of the classifier's log q(y|x) in the paper's unit: α·N over the labelled images, of N in all."""
    latent_dim: int = 10
    """Dimensions of the style, z (m2) or z2 (m1m2)."""
    hidden_dims: tuple[int, ...] = (300,)
    """Widths of the hidden layers between label, style and image (m2) or code (m1m2)."""
    classifier_dims: tuple[int, ...] = (300, 300)
    """Widths of the classifier's hidden layers."""
    dropout: float = 0.0
    """Probability with which the classifier drops a hidden unit."""
    m1_dims: tuple[int, ...] = (500, 500)
    """Widths of the hidden layers of M1 (m1m2)."""
    m1_epochs: int | None = None
    """Epochs that M1 is trained for (m1m2); by default as many as --epochs."""
    labelled_batch_size: int = 100
    """Labelled images per minibatch; --batch-size is that of the unlabelled ones."""
    loss: Literal["trace"] = "trace"
    """Pyro's TraceEnum_ELBO, with an exact sum over the label."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        args = super().resolved()
        return replace(args, m1_epochs=args.epochs if args.smoke or args.m1_epochs is None else args.m1_epochs)


def build(args: Args, data: ImageData) -> SSVAE | StackedSSVAE:
    """The pair that the flags describe."""
    shape, levels = data.event_shape, data.levels
    parameters = {"categorical": (levels,)}.get(args.likelihood, ())
    labelled = min(args.num_labels, len(data.train[0]))
    alpha = args.alpha * len(data.train[0]) / labelled if labelled else 0.0
    if args.variant == "m2":
        decoder = _conditional(args, data, args.latent_dim, (*parameters, *shape))
        if args.likelihood == "bernoulli":
            start_at_mean(decoder, data.train[0])
        return _m2(args, data, shape, likelihood(args, decoder, levels), alpha)
    m1_decoder = MLP(CODE_DIM, args.m1_dims[::-1], (*parameters, *shape), activation="softplus")
    if args.likelihood == "bernoulli":
        start_at_mean(m1_decoder, data.train[0])
    m1 = VAE(
        p_z=StandardNormal(CODE_DIM),
        p_x_given_z=likelihood(args, m1_decoder, levels),
        q_z_given_x=ConditionalNormal(MLP(shape, args.m1_dims, (2, CODE_DIM), activation="softplus")),
    )
    p_z1 = ConditionalNormal(_conditional(args, data, args.latent_dim, (2, CODE_DIM)))
    return StackedSSVAE(m1, _m2(args, data, (CODE_DIM,), p_z1, alpha))


def _m2(args: Args, data: ImageData, in_shape: tuple[int, ...], p_x_given_zy: nn.Module, alpha: float) -> SSVAE:
    classifier = MLP(in_shape, args.classifier_dims, data.num_classes, norm="batch", dropout=args.dropout)
    return SSVAE(
        p_y=UniformCategorical(data.num_classes),
        p_z=StandardNormal(args.latent_dim),
        p_x_given_zy=p_x_given_zy,
        q_y_given_x=ConditionalCategorical(classifier, num_classes=data.num_classes),
        q_z_given_xy=ConditionalNormal(_conditional(args, data, in_shape, (2, args.latent_dim))),
        alpha=alpha,
    )


def _conditional(args: Args, data: ImageData, in_shape: Any, out_shape: tuple[int, ...]) -> ConditionalMLP:
    c = data.num_classes
    return ConditionalMLP(in_shape, c, args.hidden_dims, out_shape, activation="softplus", embed=OneHot(c))


def batches(args: Args, data: ImageData, device: torch.device) -> Batches | JointBatches:
    """Labelled and unlabelled minibatches side by side; only the former know labels."""
    x, y = data.train
    labelled, unlabelled = split_labels(y, min(args.num_labels, len(y)), seed=args.seed)
    options: dict[str, Any] = {"transform": Binarize() if args.binarize == "dynamic" else None, "device": device}
    parts = []
    if len(labelled):
        size = min(args.labelled_batch_size, len(labelled))
        parts.append(Batches(x[labelled], y[labelled], batch_size=size, seed=args.seed, **options))
    if len(unlabelled):
        parts.append(Batches(x[unlabelled], batch_size=args.batch_size, seed=args.seed, **options))
    return JointBatches(*parts)


def train_m1(pair: SSVAE | StackedSSVAE, args: Args, data: ImageData, device: torch.device, out: Path) -> None:
    """Trains M1 on all images, without labels, into the folder `m1` of the run, and holds it fixed from then on."""
    if not isinstance(pair, StackedSSVAE):
        return
    folder = out / "m1"
    assert args.m1_epochs is not None
    run = fit(
        pair.m1,
        image_batches(args, data, device),
        loss=TraceMeanField_ELBO(),
        epochs=args.m1_epochs,
        out=folder,
        resume=RunFolder(folder).config.is_file(),
        **fit_options(args, device),
    )
    if run.stopped == "interrupted":
        raise InterruptedTraining(f"stopped in the training of M1; continue with --resume --out {out}")
    pair.m1.requires_grad_(False)


def objective(args: Args) -> ELBO:
    """The ELBO with the label summed over."""
    return TraceEnum_ELBO(max_plate_nesting=1)


def measure(pair: SSVAE | StackedSSVAE, args: Args, data: ImageData) -> Report:
    """The test error, by the classifier and by Bayes' rule."""
    device = next(pair.parameters()).device
    x, y = data.test
    measured = {"test error in %, q(y|x)": error_rate(pair.classify(x.to(device)), y)}
    some = slice(0, args.num_eval)
    num_samples = min(args.num_samples, 100)
    bayes = label_posterior(pair, x[some], num_classes=data.num_classes, num_samples=num_samples, seed=args.seed)
    measured[f"error in %, p(y|x) by Bayes, {len(y[some])} images"] = error_rate(bayes, y[some])
    return measured


EXPERIMENT = Experiment(
    "ssvae",
    Args,
    build,
    write_label_figures,
    batches=batches,
    objective=objective,
    first=train_m1,
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
