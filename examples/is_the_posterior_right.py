"""You have a trained model, and a number for log p(x). Is the number right, and is the posterior?

Every check here takes any model/guide pair. This one is a small VAE of the embedded digits.
"""

import warnings

import torch

import ppvae
from ppvae.data import Batches, Binarize, binarize, load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.evaluate import (
    Annealed,
    ParetoWarning,
    bidirectional,
    check_sbc,
    inference_gap,
    latent_report,
    ppc,
    run_sbc,
)
from ppvae.models import VAE
from ppvae.nn import MLP


def main() -> None:
    """Trains for seconds, then asks one question after another."""
    torch.manual_seed(0)
    digits = load("digits")
    vae = VAE(
        p_z=StandardNormal(6),
        p_x_given_z=ConditionalBernoulli(MLP(6, (100,), (1, 8, 8))),
        q_z_given_x=ConditionalNormal(MLP((1, 8, 8), (100,), (2, 6))),
    )
    train = Batches(digits.train.x, batch_size=128, transform=Binarize())
    ppvae.fit(vae, train, epochs=40, lr=3e-3, progress=False)
    x = binarize(digits.test.x)

    print("# Has the importance-sampled likelihood converged?")
    warnings.simplefilter("ignore", ParetoWarning)  # the summary says it too
    print(ppvae.log_marginal(vae, x, num_samples=1000).summary())

    print("\n# Does a method that owes less to the guide agree, and how tight is it on data of the model's own?")
    few = x[:20]
    method = Annealed(num_chains=8, num_temperatures=100)
    print(ppvae.log_marginal(vae, few, method=method).summary())
    print(bidirectional(vae, few, method=method).summary())

    print("\n# What does the guide lose, by its family and by its encoder?")
    print(inference_gap(vae, few, num_samples=500, num_steps=500).summary())

    print("\n# Do the latents carry information?")
    print(latent_report(vae, x).summary())

    print("\n# Is q(z|x) calibrated on the model's own data?")
    print(check_sbc(run_sbc(vae, x, num_simulations=300)).summary())

    print("\n# Do data drawn from the posterior look like the data?")
    print(ppc(vae, x, statistics={"ink": torch.mean}, num_samples=50).summary())


if __name__ == "__main__":
    main()
