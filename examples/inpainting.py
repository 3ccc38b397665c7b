"""Half of an image given, the rest drawn: partial encoders for a VAE that was trained on whole images.

The decoder stays as it is. A new encoder sees a part of x, and which part, and is trained on random parts, by the ELBO
of what it sees or to match the encoder of the whole (Harvey et al. 2022, "Conditional image generation by conditioning
variational auto-encoders", 2102.12037). log p(x hidden | x seen) is the difference of two log marginals.
"""

import torch

import ppvae
from ppvae.data import Batches, Binarize, RandomPart, binarize, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.evaluate import PartOf, condition
from ppvae.models import VAE
from ppvae.nn import MLP, ConcatInputs

SHAPE, K = (1, 8, 8), 8


def main() -> None:
    """Trains the VAE and both partial encoders, and completes digits of which the upper half is seen."""
    torch.manual_seed(0)
    digits = load("digits")
    vae = VAE(
        p_z=StandardNormal(K),
        p_x_given_z=ConditionalBernoulli(MLP(K, (200,), SHAPE)),
        q_z_given_x=ConditionalNormal(MLP(SHAPE, (200,), (2, K))),
    )
    ppvae.fit(vae, Batches(digits.train.x, batch_size=128, transform=Binarize()), epochs=100, progress=False)
    vae.requires_grad_(False)
    x = binarize(digits.test.x)
    upper = (torch.arange(8) < 4).reshape(8, 1).expand(len(x), 1, 8, 8)
    print("the encoder of the whole, shown the part:", condition(vae, x, upper).summary())
    for name in ("the ELBO of the part", "the encoder of the whole"):
        part = PartOf(vae, ConditionalNormal(ConcatInputs((SHAPE, SHAPE), MLP(128, (200, 200), (2, K)))))
        trained = part if name == "the ELBO of the part" else part.matching()
        parts = Batches(digits.train.x, batch_size=128, transform=RandomPart(Binarize()))
        ppvae.fit(trained, parts, epochs=100, progress=False)
        print(f"an encoder of the part, trained by {name}:", condition(part, x, upper).summary())


if __name__ == "__main__":
    main()
