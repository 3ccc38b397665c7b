"""log p(x) per datum by importance sampling: ppvae, eager and compiled, against Pyro's tools and Pythae's.

64 images, 5,000 samples each, an MLP decoder 20-400-784. Pyro has no estimate per datum, so its own
`vectorized_importance_weights` runs once for each image; Pythae's `get_nll` draws its samples 100 at a time.

    python benchmarks/log_marginal.py
"""

from __future__ import annotations

import math
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import pyro
import torch
import tyro
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor

import ppvae
from ppvae.compile import keep_freed_memory
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP

HIDDEN, LATENT = 400, 20


@dataclass(frozen=True)
class Args:
    """Time an estimate of log p(x), side by side."""

    num_data: int = 64
    """Images."""
    num_samples: int = 5000
    """Importance samples per image."""
    rounds: int = 3
    """Turns of each contestant that count."""
    peers: int = 4
    """Images that the peers are timed on (their time is per image)."""


def make_vae() -> VAE:
    """The pair."""
    torch.manual_seed(0)
    return VAE(
        p_z=StandardNormal(LATENT),
        p_x_given_z=ConditionalBernoulli(MLP(LATENT, (HIDDEN,), 784)),
        q_z_given_x=ConditionalNormal(MLP(784, (HIDDEN,), (2, LATENT))),
    )


def by_pyro(vae: VAE, x: Tensor, num_samples: int) -> Tensor:
    """Pyro's importance weights, one image at a time: it gives one weight for a whole batch."""
    values = []
    with torch.no_grad():
        for image in x.split(1):
            log_weights, _, _ = vectorized_importance_weights(
                vae.model, vae.guide, image, num_samples=num_samples, max_plate_nesting=1
            )
            values.append(torch.logsumexp(log_weights, 0) - math.log(num_samples))
    return torch.stack(values)


def by_pythae(vae: VAE, x: Tensor, num_samples: int) -> None:
    """Pythae's `get_nll` of a VAE with the same networks."""
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, batch: Tensor) -> ModelOutput:
            mean, log_variance = vae.q_z_given_x.net(batch.reshape(-1, 784)).unbind(-2)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=vae.p_x_given_z.net(z).sigmoid())

    config = VAEConfig(input_dim=(784,), latent_dim=LATENT, reconstruction_loss="bce")
    with torch.no_grad():
        PythaeVAE(config, Encoder(), Decoder()).get_nll(x, n_samples=num_samples, batch_size=100)


def seconds(function: Callable[[], object]) -> float:
    """Wall time."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def matmul_rate() -> float:
    """Floating point operations a second of a large matrix product, at its best."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ a) for _ in range(10))


def main(args: Args) -> None:
    """Prints the table."""
    keep_freed_memory()  # as a compiled graph of ours has it: for every contestant, whatever their order
    warnings.filterwarnings("ignore")
    vae, x = make_vae(), torch.bernoulli(torch.full((args.num_data, 784), 0.3))
    few = x[: args.peers]

    def by_ppvae(compile: bool) -> float:
        return seconds(lambda: ppvae.log_marginal(vae, x, num_samples=args.num_samples, compile=compile))

    contestants: dict[str, Callable[[], float]] = {
        "ppvae.log_marginal, eager": lambda: by_ppvae(False) / len(x),
        "ppvae.log_marginal, compiled": lambda: by_ppvae(True) / len(x),
        "Pyro, an image at a time": lambda: seconds(lambda: by_pyro(vae, few, args.num_samples)) / len(few),
    }
    if find_spec("pythae"):
        contestants["Pythae get_nll"] = lambda: seconds(lambda: by_pythae(vae, few, args.num_samples)) / len(few)
    best = {name: min(time_of() for _ in range(args.rounds + 1)) for name, time_of in contestants.items()}
    flops = args.num_samples * 2 * (LATENT * HIDDEN + HIDDEN * 784)
    rate = matmul_rate()
    print(f"{len(x)} images, {args.num_samples} samples, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':<30}{'ms/image':>10}{'of the matmul rate':>20}{'slower than the first by':>26}")
    for name, time_of in best.items():
        ratio = time_of / best["ppvae.log_marginal, eager"]
        print(f"{name:<30}{1e3 * time_of:>10.1f}{flops / time_of / rate:>20.0%}{ratio:>26.2f}")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    pyro.clear_param_store()
    main(tyro.cli(Args))
