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
from torch import Tensor, nn

from ppvae import plot
from ppvae._validate import check_count, check_number
from ppvae.cli.experiment import Experiment, InterruptedTraining, fit_options, image_batches
from ppvae.cli.flags import ImageArgs, check_used, flag, to_json
from ppvae.cli.images import ImageData, likelihood, start_at_mean
from ppvae.cli.report import Report
from ppvae.data import Batches, Binarize, JointBatches, split_labels
from ppvae.distributions import ConditionalCategorical, ConditionalNormal, StandardNormal, UniformCategorical
from ppvae.evaluate.classification import Reliability, error_rate, label_posterior, reliability
from ppvae.examples.figures import write_figures, write_label_figures
from ppvae.infer import Run, fit
from ppvae.means import code_of
from ppvae.models import SSVAE, VAE, StackedSSVAE
from ppvae.nn import MLP, ConditionalMLP, ConditionalSequential, ConvEncoder, OneHot, Rescale


@dataclass(frozen=True)
class Args(ImageArgs):
    """Train a semi-supervised VAE on images; report its test error, ELBO and log p(x)."""

    epochs: int | None = None
    """Passes over the training data; by default 150 on the digits, 50 on larger sets."""
    num_samples: int = 200
    """Importance samples per datum and class for log p(x) in the final table."""
    variant: Literal["m1", "m2", "m1m2"] = "m2"
    """m1: a VAE, and a support vector machine on its codes; m2: a label and a style explain the image; m1m2: they
    explain the code of a VAE that was trained first."""
    num_labels: int = 100
    """Training images that keep their labels, drawn by --seed, as many of each class as of any other."""
    alpha: float = 1.0
    """Weight of the classifier's log q(y|x) in the paper's unit: α·N over the labelled images, of N in all. The paper
    has 0.1 and trains for 3,000 epochs."""
    latent_dim: int = 5
    """Dimensions of the style, z (m2) or z2 (m1m2)."""
    code_dim: int = 20
    """Dimensions of z1, the code of M1 (m1, m1m2)."""
    hidden_dims: tuple[int, ...] | None = None
    """Widths of the hidden layers between label, style and image (m2) or code (m1m2); by default 300 or 100."""
    classifier: Literal["mlp", "conv"] = "mlp"
    """Kind of the classifier: fully connected, or convolutional (m2)."""
    classifier_dims: tuple[int, ...] | None = None
    """Widths of the classifier's hidden layers, or channels where it is convolutional, each of which halves the image;
    by default 300 300, or 32 64."""
    dropout: float = 0.2
    """Probability with which the classifier drops a hidden unit."""
    m1_dims: tuple[int, ...] = (500, 500)
    """Widths of the hidden layers of M1 (m1, m1m2)."""
    m1_epochs: int | None = None
    """Epochs that M1 is trained for, without labels (m1m2); by default 100 on the digits, 15 on larger sets."""
    freeze_m1: bool = False
    """Hold M1 fixed from then on, as the paper does; otherwise all of the model is trained together (m1m2)."""
    supervised_epochs: int = 200
    """Passes over the labelled images alone that come before the others join, so that y is the class from the start."""
    labelled_batch_size: int = 100
    """Labelled images per minibatch; --batch-size is that of the unlabelled ones."""
    loss: Literal["trace"] = "trace"
    """Pyro's TraceEnum_ELBO, with an exact sum over the label."""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """Whether the learning rate falls along half a cosine to a hundredth of --lr over the epochs."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        self._check()
        epochs = 150 if self.epochs is None and self.dataset == "digits" else self.epochs
        args = replace(super().resolved(), epochs=1 if self.smoke else epochs or 50)
        if args.variant == "m1":
            return args
        hidden_dims = args.hidden_dims or ((300,) if args.variant == "m2" else (100,))
        classifier_dims = args.classifier_dims or ((300, 300) if args.classifier == "mlp" else (32, 64))
        args = replace(args, hidden_dims=hidden_dims, classifier_dims=classifier_dims)
        args = replace(args, supervised_epochs=1) if args.smoke else args
        if args.variant == "m2":
            return args
        m1_epochs = args.m1_epochs or (100 if args.dataset == "digits" else 15)
        return replace(args, m1_epochs=1 if args.smoke else m1_epochs)

    def _check(self) -> None:
        m1, m2, both = ("m1", "m1m2"), ("m2", "m1m2"), ("m1m2",)
        check_used(self, "variant", code_dim=m1, m1_dims=m1, m1_epochs=both, freeze_m1=both)
        check_used(self, "variant", latent_dim=m2, hidden_dims=m2, alpha=m2, labelled_batch_size=m2, dropout=m2)
        check_used(self, "variant", classifier=("m2",), classifier_dims=m2, supervised_epochs=m2)
        check_count("--num-labels", self.num_labels, at_least=0)
        check_count("--supervised-epochs", self.supervised_epochs, at_least=0)
        for name in ("latent_dim", "code_dim", "labelled_batch_size", "m1_epochs"):
            if (value := getattr(self, name)) is not None:
                check_count(flag(name), value)
        check_number("--alpha", self.alpha, at_least=0)


def build(args: Args, data: ImageData) -> VAE | SSVAE | StackedSSVAE:
    """The pair that the flags describe."""
    num, n, c = args.num_labels, len(data.train[0]), data.num_classes
    if 0 < num < c or (num > n and not args.smoke):
        raise ValueError(
            f"--num-labels must be 0, or from {c}, one of each class, to {n}, all that there are; got {num}"
        )
    if args.variant == "m1":
        return _m1(args, data)
    if args.variant == "m1m2":
        code = (args.code_dim,)
        return StackedSSVAE(_m1(args, data), _m2(args, data, code, ConditionalNormal(_given_y(args, data, (2, *code)))))
    decoder = _given_y(args, data, (*_parameters(args, data), *data.event_shape))
    if args.likelihood == "bernoulli":
        start_at_mean(decoder, data.train[0])
    return _m2(args, data, data.event_shape, likelihood(args, decoder, data.levels))


def _m1(args: Args, data: ImageData) -> VAE:
    """M1, a VAE of the images."""
    shape, k = data.event_shape, args.code_dim
    decoder = MLP(k, args.m1_dims[::-1], (*_parameters(args, data), *shape), norm="layer")
    if args.likelihood == "bernoulli":
        start_at_mean(decoder, data.train[0])
    encoder: nn.Module = MLP(shape, args.m1_dims, (2, k), norm="layer")
    if args.likelihood == "categorical":  # integer levels to [0, 1]
        encoder = nn.Sequential(Rescale(1 / (data.levels - 1)), encoder)
    return VAE(
        p_z=StandardNormal(k),
        p_x_given_z=likelihood(args, decoder, data.levels),
        q_z_given_x=ConditionalNormal(encoder),
    )


def _m2(args: Args, data: ImageData, in_shape: tuple[int, ...], p_x_given_zy: nn.Module) -> SSVAE:
    """M2 of images, or of codes of shape `in_shape`."""
    c, num_labels = data.num_classes, min(args.num_labels, len(data.train[0]))
    assert args.hidden_dims is not None
    assert args.classifier_dims is not None
    kind = MLP if args.classifier == "mlp" else ConvEncoder
    classifier: nn.Module = kind(in_shape, args.classifier_dims, c, dropout=args.dropout)
    encoder: nn.Module = ConditionalMLP(in_shape, c, args.hidden_dims, (2, args.latent_dim), embed=OneHot(c))
    if in_shape == data.event_shape and args.likelihood == "categorical":  # integer levels to [0, 1]
        to_unit = Rescale(1 / (data.levels - 1))
        classifier, encoder = nn.Sequential(to_unit, classifier), ConditionalSequential(to_unit, encoder)
    return SSVAE(
        p_y=UniformCategorical(c),
        p_z=StandardNormal(args.latent_dim),
        p_x_given_zy=p_x_given_zy,
        q_y_given_x=ConditionalCategorical(classifier, num_classes=c),
        q_z_given_xy=ConditionalNormal(encoder),
        alpha=args.alpha * len(data.train[0]) / num_labels if num_labels else 0.0,
    )


def _given_y(args: Args, data: ImageData, out_shape: tuple[int, ...]) -> ConditionalMLP:
    """A decoder from style and label."""
    c = data.num_classes
    assert args.hidden_dims is not None
    return ConditionalMLP(args.latent_dim, c, args.hidden_dims, out_shape, embed=OneHot(c))


def _parameters(args: Args, data: ImageData) -> tuple[int, ...]:
    """The shape of what the likelihood wants for each pixel."""
    return (data.levels,) if args.likelihood == "categorical" else ()


def labels_kept(args: Args, data: ImageData) -> tuple[Tensor, Tensor]:
    """Row numbers of the training images that keep their labels, and of the others."""
    y = data.train[1]
    return split_labels(y, min(args.num_labels, len(y)), seed=args.seed)


def batches(args: Args, data: ImageData, device: torch.device) -> Batches | JointBatches:
    """Labelled and unlabelled minibatches side by side; only the former know labels. For M1, all without."""
    if args.variant == "m1":
        return image_batches(args, data, device)
    (x, y), (labelled, unlabelled) = data.train, labels_kept(args, data)
    options: dict[str, Any] = {"transform": Binarize() if args.binarize == "dynamic" else None, "device": device}
    parts = []
    if len(labelled):
        size = min(args.labelled_batch_size, len(labelled))
        parts.append(Batches(x[labelled], y[labelled], batch_size=size, seed=args.seed, **options))
    if len(unlabelled):
        parts.append(Batches(x[unlabelled], batch_size=args.batch_size, seed=args.seed, **options))
    return JointBatches(*parts)


def train_first(pair: VAE | SSVAE | StackedSSVAE, args: Args, data: ImageData, device: torch.device, out: Path) -> None:
    """Trains M1 on all images without labels, then the rest on the labelled images, each into a folder of its own."""
    if isinstance(pair, VAE):
        return
    if isinstance(pair, StackedSSVAE):
        assert args.m1_epochs is not None
        options = fit_options(args, device, args.m1_epochs)
        _train_part(pair.m1, args, image_batches(args, data, device), TraceMeanField_ELBO(), out / "m1", options)
        pair.m1.requires_grad_(False)
    if args.num_labels and args.supervised_epochs:
        loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        options = fit_options(args, device, args.supervised_epochs) | {"lr": args.lr}
        both = batches(args, data, device)
        assert isinstance(both, JointBatches)
        _train_part(pair, args, both.sets[0], loss, out / "supervised", options)
    pair.requires_grad_(True)
    if isinstance(pair, StackedSSVAE) and args.freeze_m1:
        pair.m1.requires_grad_(False)


def _train_part(pair: nn.Module, args: Args, train: Batches, loss: ELBO, folder: Path, options: dict[str, Any]) -> None:
    run = fit(pair, train, loss=loss, out=folder, resume=args.resume, config={"args": to_json(args)}, **options)
    if run.stopped == "interrupted":
        raise InterruptedTraining(f"stopped in {folder.name}; continue with --resume --out {folder.parent}")


def objective(args: Args) -> ELBO:
    """The ELBO with the label summed over; for M1, which has none, with the KL term in closed form."""
    return TraceMeanField_ELBO() if args.variant == "m1" else TraceEnum_ELBO(max_plate_nesting=1)


def measure(pair: VAE | SSVAE | StackedSSVAE, args: Args, data: ImageData) -> Report:
    """The test error: by the classifier of M1's codes, or by that of the guide and by Bayes' rule, with calibration."""
    device = next(pair.parameters()).device
    (x, y), name = data.test, "test error in %"
    if isinstance(pair, VAE):
        return {f"{name}, SVM on the codes": _svm_error(pair, args, data)} if args.num_labels else {}
    probabilities = pair.classify(x.to(device))
    measured = {f"{name}, q(y|x)": error_rate(probabilities, y)}
    measured["calibration error in %, q(y|x)"] = _calibration_error(reliability(probabilities, y))
    if args.binarize != "none":  # the expected image is less noisy than a draw of it
        measured[f"{name}, q(y|x) of the intensities"] = error_rate(pair.classify(data.intensities.to(device)), y)
    x, y = x[: args.num_eval], y[: args.num_eval]
    few = min(args.num_samples, 100)
    bayes = label_posterior(pair, x, num_classes=data.num_classes, num_samples=few, seed=args.seed)
    measured[f"error in %, p(y|x) by Bayes, {len(y)} images"] = error_rate(bayes, y)
    measured["calibration error in %, p(y|x) by Bayes"] = _calibration_error(reliability(bayes, y))
    return measured


def _calibration_error(found: Reliability) -> dict[str, float]:
    return {"mean": 100 * found.expected_calibration_error(), "std_error": 100 * found.std_error}


@torch.no_grad()
def _svm_error(m1: VAE, args: Args, data: ImageData) -> dict[str, float]:
    """The test error of a support vector machine that was trained on the codes of the labelled images."""
    from sklearn.svm import SVC

    device = next(m1.parameters()).device
    labelled, _ = labels_kept(args, data)
    codes = code_of(m1.encode(data.train[0][labelled].to(device))).cpu()
    svm = SVC().fit(codes.numpy(), data.train[1][labelled].numpy())
    found = svm.predict(code_of(m1.encode(data.intensities.to(device))).cpu().numpy())
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(found), data.num_classes)
    return error_rate(one_hot.double(), data.test[1])


def draw(pair: VAE | SSVAE | StackedSSVAE, args: Args, data: ImageData, run: Run) -> None:
    """Writes the pictures of a VAE, or of a model with labels and of how sure its classifier is."""
    if isinstance(pair, VAE):
        write_figures(pair, args, data, run)
    else:
        write_label_figures(pair, args, data, run)
        assert run.folder is not None
        found = reliability(pair.classify(data.test[0].to(next(pair.parameters()).device)), data.test[1])
        diagram = plot.reliability_diagram(found.confidence, found.accuracy, found.count)
        plot.save(diagram, run.folder / "figures" / "reliability.png")


def style(args: Args) -> tuple[str, ...] | None:
    """The latents that --warmup weights: the style, so that the label keeps its own term; in M1 all there is."""
    return {"m1": None, "m2": ("z",), "m1m2": ("z2",)}[args.variant]


EXPERIMENT = Experiment(
    "ssvae",
    Args,
    build,
    draw,
    batches=batches,
    objective=objective,
    first=train_first,
    kl_sites=style,
    measure=measure,
)


def main(argv: list[str] | None = None) -> int:
    """Runs the example; returns its exit status."""
    return EXPERIMENT.main(argv)


if __name__ == "__main__":
    sys.exit(main())
