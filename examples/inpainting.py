"""Half of an image given, the rest drawn: a partial encoder for a VAE that was trained on whole images.

The decoder stays as it is. A new encoder sees a part of x, and which part, and is trained on random parts by the ELBO
of what it sees (Harvey et al. 2022, "Conditional image generation by conditioning variational auto-encoders",
2102.12037). log p(x hidden | x seen) is the difference of two log marginals.
"""

from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

import ppvae
from ppvae.data import Batches, Binarize, binarize, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.evaluate import impute
from ppvae.models import VAE, MaskedVAE
from ppvae.nn import MLP, ConcatInputs
from ppvae.plot import by_condition, save

SHAPE, K = (1, 8, 8), 8


def random_part(generator: torch.Generator, x: Tensor) -> tuple[Tensor, Tensor]:
    """New binary images, each with a rectangle of pixels that are seen."""
    top, left, height, width = (torch.rand(len(x), 1, 1, 1, generator=generator) for _ in range(4))
    rows, columns = torch.arange(8).reshape(8, 1) / 8, torch.arange(8) / 8
    seen = (rows >= top * height) & (rows < top * height + 1 - height) & (columns >= left * width)
    return torch.bernoulli(x, generator=generator), seen & (columns < left * width + 1 - width)


def main() -> None:
    """Trains both encoders, and completes digits of which the upper half is seen."""
    torch.manual_seed(0)
    digits = load("digits")
    vae = VAE(
        p_z=StandardNormal(K),
        p_x_given_z=ConditionalBernoulli(MLP(K, (200,), SHAPE)),
        q_z_given_x=ConditionalNormal(MLP(SHAPE, (200,), (2, K))),
    )
    ppvae.fit(vae, Batches(digits.train.x, batch_size=128, transform=Binarize()), epochs=100, progress=False)

    encoder = ConditionalNormal(ConcatInputs((SHAPE, SHAPE), MLP(128, (200, 200), (2, K))))
    partial = MaskedVAE(vae.p_z, vae.p_x_given_z.requires_grad_(False), encoder)
    ppvae.fit(partial, Batches(digits.train.x, batch_size=128, transform=random_part), epochs=100, progress=False)

    x = binarize(digits.test.x)
    upper = (torch.arange(8) < 4).reshape(8, 1).expand(len(x), 1, 8, 8)
    both, seen = (ppvae.log_marginal(partial, x, part) for part in (torch.ones_like(upper), upper))
    print(f"log p(x) = {both.mean():.2f}, of the upper half {seen.mean():.2f} nats")
    print(f"log p(lower half | upper half) = {(both.values - seen.values).mean():.2f} nats of 22.18 for coin tosses")
    completed = impute(partial, x[:8], upper[:8], num_samples=6, num_particles=5000)
    print(f"k̂ of the completions: at most {float(completed.pareto_k.max()):.2f}")
    shown = torch.cat([torch.where(upper[:8], x[:8], 0.5).unsqueeze(0), completed.draws]).movedim(0, 1)
    path = Path(mkdtemp()) / "completed.png"
    save(by_condition(shown, labels=["seen", *["drawn"] * 6], x=x[:8]), path)
    print("the digits, what was seen of them, and six completions of each:", path)


if __name__ == "__main__":
    main()
