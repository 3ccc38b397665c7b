"""One training epoch of the MNIST VAE: ppvae against a hand-written PyTorch loop, Pyro's own SVI, and Pythae.

MLP 784-200-200 with tanh, 50 latents, Bernoulli, dynamic binarization, Adam 1e-3 with ε 1e-4. Every contestant trains
the same network on the same number of images; they take turns, so that the ratios hold when the machine's speed
drifts.

    python benchmarks/epoch.py --data-root data
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pyro
import torch
import tyro
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn import functional as F

import ppvae
from ppvae.data import Batches, Binarize, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP

HIDDEN, LATENT = (200, 200), 50
ADAM = {"lr": 1e-3, "eps": 1e-4}


@dataclass(frozen=True)
class Args:
    """Time one epoch of training, side by side."""

    data_root: Path = Path("data")
    """Folder that holds MNIST as torchvision lays it out."""
    batch_size: int = 100
    """Images per minibatch."""
    num_images: int = 50_000
    """Images per epoch."""
    rounds: int = 5
    """Epochs of each contestant that count, after one that warms up."""
    threads: int | None = None
    """Threads of torch; by default as many as it takes."""


def make_vae() -> VAE:
    """The network that every contestant but Pythae trains."""
    return VAE(
        p_z=StandardNormal(LATENT),
        p_x_given_z=ConditionalBernoulli(MLP(LATENT, HIDDEN, 784, activation="tanh")),
        q_z_given_x=ConditionalNormal(MLP(784, HIDDEN, (2, LATENT), activation="tanh")),
    )


def minibatches(x: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Shuffled minibatches of fresh Bernoulli draws, as one writes them by hand."""
    for index in torch.randperm(len(x)).split(batch_size):
        yield torch.bernoulli(x[index])


def by_hand(x: Tensor, batch_size: int) -> Callable[[], None]:
    """A plain PyTorch loop: closed-form KL, one fused Adam."""
    vae = make_vae()
    encoder, decoder = vae.q_z_given_x.net, vae.p_x_given_z.net
    optimizer = torch.optim.Adam(vae.parameters(), fused=True, **ADAM)

    def epoch() -> None:
        for batch in minibatches(x, batch_size):
            mean, raw = encoder(batch).unbind(-2)
            scale = F.softplus(raw) + 1e-4
            logits = decoder(mean + scale * torch.randn_like(scale))
            nll = F.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            kl = 0.5 * (mean**2 + scale**2 - 1 - 2 * scale.log()).sum()
            optimizer.zero_grad()
            ((nll + kl) / len(batch)).backward()
            optimizer.step()

    return epoch


def by_ppvae(x: Tensor, batch_size: int, loss: type) -> Callable[[], None]:
    """`ppvae.fit`."""
    vae = make_vae()
    batches = Batches(x, batch_size=batch_size, transform=Binarize())
    optim = partial(torch.optim.Adam, fused=True, eps=ADAM["eps"])
    return lambda: ppvae.fit(vae, batches, epochs=1, loss=loss(), lr=ADAM["lr"], optim=optim, progress=False)


def by_pyro(x: Tensor, batch_size: int) -> Callable[[], None]:
    """`pyro.infer.SVI` as its tutorials use it."""
    vae = make_vae()

    def model(batch: Tensor) -> None:
        pyro.module("p_x_given_z", vae.p_x_given_z)
        vae.model(batch)

    def guide(batch: Tensor) -> None:
        pyro.module("q_z_given_x", vae.q_z_given_x)
        vae.guide(batch)

    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam(dict(ADAM)), Trace_ELBO())

    def epoch() -> None:
        for batch in minibatches(x, batch_size):
            svi.step(batch)

    return epoch


def by_pythae(x: Tensor, batch_size: int) -> Callable[[], None]:
    """Pythae's VAE of the same widths, trained by its own trainer, without its files and logs."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = MLP(784, HIDDEN, (2, LATENT), activation="tanh")

        def forward(self, batch: Tensor) -> ModelOutput:
            mean, log_variance = self.net(batch).unbind(-2)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(MLP(LATENT, HIDDEN, 784, activation="tanh"), nn.Sigmoid())

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net(z))

    config = VAEConfig(input_dim=(784,), latent_dim=LATENT, reconstruction_loss="bce")
    model = PythaeVAE(config, Encoder(), Decoder())
    data = BaseDataset(torch.bernoulli(x), torch.zeros(len(x)))
    settings = BaseTrainerConfig(
        output_dir="pythae", per_device_train_batch_size=batch_size, learning_rate=ADAM["lr"], num_epochs=1
    )
    trainer = BaseTrainer(model=model, train_dataset=data, training_config=settings)
    trainer.prepare_training()
    return lambda: trainer.train_step(epoch=1)


def main(args: Args) -> None:
    """Prints the table."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    x = load("mnist", args.data_root).train.x[: args.num_images].flatten(1)
    torch.manual_seed(0)
    contestants = {
        "hand-written PyTorch": by_hand(x, args.batch_size),
        "ppvae.fit, TraceMeanField_ELBO": by_ppvae(x, args.batch_size, TraceMeanField_ELBO),
        "ppvae.fit, Trace_ELBO": by_ppvae(x, args.batch_size, Trace_ELBO),
        "pyro.infer.SVI": by_pyro(x, args.batch_size),
    }
    if find_spec("pythae"):
        contestants["Pythae"] = by_pythae(x, args.batch_size)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(args.rounds + 1):
        for name, epoch in contestants.items():
            began = time.perf_counter()
            epoch()
            if turn:
                times[name].append(time.perf_counter() - began)
    baseline = times["hand-written PyTorch"]
    steps = -(-len(x) // args.batch_size)
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{len(x)} images an epoch, batch {args.batch_size}, {machine}")
    print(f"{'':<32}{'ms/step':>9}{'ratio to hand-written: median (min … max)':>46}")
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, baseline, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        print(f"{name:<32}{1e3 * statistics.median(seconds) / steps:>9.2f}{spread:>46}")


if __name__ == "__main__":
    main(tyro.cli(Args))
