"""Define your own generative model in Pyro syntax, train it, and report its log p(x).

The story: a count x of two Poisson channels whose rates share one latent intensity z,

    z ~ N(0, 1)        x_j ~ Poisson(exp(a_j + b_j z))        guide: z ~ N(m(x), s(x)²)

Any `nn.Module` with a `model` and a `guide` that take the same arguments is a pair: training, likelihoods and files
come for free.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import ppvae
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.nn import MLP, Rescale


class SharedIntensity(nn.Module):
    """Two Poisson channels driven by one latent."""

    def __init__(self) -> None:
        super().__init__()
        self.p_z = StandardNormal(1)
        self.log_rate = nn.Linear(1, 2)
        self.q_z_given_x = ConditionalNormal(nn.Sequential(Rescale(0.1), MLP(2, (32,), (2, 1), activation="tanh")))

    def model(self, x: Tensor) -> None:
        """Z ~ N(0, 1), x ~ Poisson(exp(a + bz))."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", dist.Poisson(self.log_rate(z).exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Z ~ q(z|x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q_z_given_x(x))


def main() -> None:
    """Trains on data whose parameters are known, and compares."""
    torch.manual_seed(0)
    z = torch.randn(5000, 1)
    x = torch.poisson(torch.exp(torch.tensor([1.0, 2.0]) + torch.tensor([0.5, -1.0]) * z))
    train, test = x[:4000], x[4000:]

    pair = SharedIntensity()
    ppvae.fit(pair, train, epochs=60, lr=1e-2, progress=False)

    print("a =", [round(v, 2) for v in pair.log_rate.bias.tolist()], "true: [1.0, 2.0]")
    print("b =", [round(v, 2) for v in pair.log_rate.weight[:, 0].tolist()], "true: ±[0.5, -1.0]")
    print(ppvae.log_marginal(pair, test, num_samples=1000).summary())


if __name__ == "__main__":
    main()
