"""What images are compared by: features of a small classifier of the data set's own labels, or of InceptionV3."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ppvae._validate import check_count, check_path, check_seed, check_tensor
from ppvae.isolation import check_trainable
from ppvae.rng import forked_rng, permutation, stream
from ppvae.storage import digest_of

NUM_FEATURES = 64
"""Features of the classifier."""
MIN_DATA = 20
"""The fewest data that a classifier is trained on."""
HELD_OUT = 10
"""One datum of so many shows the error of the classifier."""
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""The weights that torch-fidelity converted of TensorFlow's, those of the published Fréchet inception distances."""


class LabelFeatures(nn.Module):
    """A classifier whose last hidden layer is 64 features: convolutions for images, an MLP for anything else.

    Made by `train_features`. Features of the data that it was trained on have mean zero and, over all 64, variance one.

    Args:
        event_shape: of a datum: (c, h, w) of images of at least 8 × 8, or anything.
        num_classes: of the labels.

    Attributes:
        description: what it was trained on, for whoever reads its numbers.
    """

    mean: Tensor
    scale: Tensor
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, event_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("feature_mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("feature_scale", torch.ones(()))
        self.description = "features of an untrained classifier"
        self.body = nn.Sequential(*_layers(event_shape))
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, 64) of data (n, *event)."""
        return (self._hidden(x) - self.feature_mean) / self.feature_scale

    def logits(self, x: Tensor) -> Tensor:
        """What the classifier says of them, (n, c)."""
        return self.head(self._hidden(x))

    @torch.no_grad()
    def standardise(self, values: Tensor) -> None:
        """Sets the mean and the scale of the features by what these data have."""
        hidden = torch.cat([self._hidden(rows) for rows in values.split(1000)])
        self.feature_mean.copy_(hidden.mean(0))
        self.feature_scale.copy_((hidden - self.feature_mean).square().mean().sqrt())

    def _hidden(self, x: Tensor) -> Tensor:
        return self.body((x.to(self.mean.dtype) - self.mean) / self.scale)


def _layers(event_shape: tuple[int, ...]) -> list[nn.Module]:
    if len(event_shape) != 3 or min(event_shape[1:]) < 8:
        return [
            nn.Flatten(),
            nn.Linear(math.prod(event_shape), 128),
            nn.GELU(),
            nn.Linear(128, NUM_FEATURES),
            nn.GELU(),
        ]
    channels, height, width = event_shape
    size = 32 * -(-height // 4) * -(-width // 4)
    convolutions = [
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
    ]
    return [*convolutions, nn.GELU(), nn.Flatten(), nn.Linear(size, NUM_FEATURES), nn.GELU()]


def train_features(x: Tensor, y: Tensor, *, num_steps: int = 1000, seed: int = 0) -> LabelFeatures:
    """Trains a classifier of labels, whose last hidden layer `sample_quality` compares samples with data by.

    The same data, seed and machine give the same features. Their numbers are on a scale of their own: those of another
    seed, data set or network, Inception's above all, cannot be compared with them.

    Args:
        x: data of the kind that is judged (binarized where the model draws binary pixels), shape (n, *event).
        y: their labels, integers of shape (n,), at least two classes.
        num_steps: minibatches of 128 that it is trained on, by Adam.
        seed: of its weights and its minibatches; the global random state is left alone.

    Returns:
        The classifier in eval mode, where `x` is.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where there are too few data or classes, or the shapes do not fit.

    Example:
        >>> x, y = torch.randn(200, 4), torch.arange(200) % 2
        >>> features = train_features(x + 3 * y[:, None], y, num_steps=50)
        >>> features(x).shape
        torch.Size([200, 64])
    """
    y = _check_labels(x, y)
    check_count("num_steps", num_steps)
    check_seed(seed)
    check_trainable("train_features")
    order = permutation(len(y), seed % 2**32).to(x.device)
    held_out, kept = order[: len(y) // HELD_OUT], order[len(y) // HELD_OUT :]
    with forked_rng(x.device, seed):
        net = LabelFeatures(tuple(x.shape[1:]), int(y.max()) + 1).to(x.device)
    variance, mean = torch.var_mean(x.float())
    net.mean.copy_(mean)
    net.scale.copy_(torch.where(variance > 0, variance.sqrt(), 1.0))
    optimizer, generator = torch.optim.Adam(net.parameters(), lr=1e-3), stream(seed, device=x.device)
    for _ in range(num_steps):
        rows = kept[torch.randint(len(kept), (min(128, len(kept)),), generator=generator, device=x.device)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net.logits(x[rows]), y[rows]).backward()
        optimizer.step()
    net.eval().requires_grad_(False)
    net.standardise(x[kept])
    wrong = torch.cat([net.logits(x[rows]).argmax(-1) != y[rows] for rows in held_out.split(1000)])
    net.description = (
        f"{NUM_FEATURES} features of a classifier of {len(y.unique())} classes, trained on {len(kept)} data with seed "
        f"{seed} (error {100 * float(wrong.double().mean()):.1f} % on {len(held_out)} held out)"
    )
    return net


def _check_labels(x: Tensor, y: Tensor) -> Tensor:
    check_tensor("x", x)
    check_tensor("y", y)
    if x.dim() < 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x must have shape (n, *event) and y (n,), got {tuple(x.shape)} and {tuple(y.shape)}")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"y must hold integers, got {y.dtype}")
    if len(y) < MIN_DATA:
        raise ValueError(f"x must hold at least {MIN_DATA} data to train a classifier on, got {len(y)}")
    if int(y.min()) < 0 or len(y.unique()) < 2:
        raise ValueError(
            f"y must hold labels of at least two classes, from 0 on, got {sorted(y.unique().tolist())[:5]}: data that "
            "have none need features from elsewhere"
        )
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise ValueError("x holds NaN or infinite values")
    return y.to(x.device).long()


class InceptionFeatures(nn.Module):
    """The 2048 features of published Fréchet inception distances, by torchmetrics and torch-fidelity.

    Args:
        weights: their file; by default where torch-fidelity keeps it in torch's cache. Nothing is downloaded here.

    Raises:
        ImportError: where one of the two packages is not installed.
        FileNotFoundError: where the weights are not there.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        default = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        path = default if weights is None else check_path("weights", weights)
        try:
            import torch_fidelity  # noqa: F401
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            raise ImportError(
                f"features of InceptionV3 need the packages torchmetrics and torch-fidelity ({error}): pip install "
                "torchmetrics torch-fidelity. train_features needs none"
            ) from error
        if not path.is_file():
            raise FileNotFoundError(
                f"weights: there is no file {path}; {INCEPTION_FILE} is among the releases of torch-fidelity, "
                "https://github.com/toshas/torch-fidelity"
            )
        self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        self.description = "2048 features of InceptionV3"

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, 2048) of images (n, c, h, w) with intensities in [0, 1], c one or three."""
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"InceptionV3 takes images (n, 1 or 3, h, w), got {tuple(x.shape)}")
        levels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
        return self.net(levels.expand(-1, 3, -1, -1))


def describe_features(features: nn.Module) -> str:
    """What some features are, with a digest of the weights that they are made by."""
    text = getattr(features, "description", None) or f"features of {type(features).__name__}"
    state = list(features.state_dict().values())
    return f"{text}, sha256 {digest_of(*state)[:12]}" if state else str(text)
