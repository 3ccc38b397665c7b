"""Two data plates that cross: users and items, each with a latent, and a count for every pair of them.

    z_u ~ N(0, I)      w_i ~ N(0, I)      x_ui ~ Poisson(exp(b + z_u · w_i))      guide: q(z_u | row) q(w_i | column)

as in DualVAE (Guo et al. 2024, arXiv 2401.04914). It trains on the whole matrix. Every count shares its latents with
others, so that there is no log p(x) of one of them: the ELBO is of all. There is one of new users, given the items as
they were found: theirs is a pair with one data plate.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import ppvae
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.nn import MLP, Log1p

USERS, ITEMS, K = 120, 80, 3


class UsersAndItems(nn.Module):
    """Low-rank counts."""

    def __init__(self) -> None:
        super().__init__()
        self.p_z = StandardNormal(K)
        self.bias = nn.Parameter(torch.zeros(()))
        self.q_z_given_row = ConditionalNormal(nn.Sequential(Log1p(), MLP(ITEMS, (64,), (2, K))))
        self.q_w_given_column = ConditionalNormal(nn.Sequential(Log1p(), MLP(USERS, (64,), (2, K))))

    def model(self, x: Tensor) -> None:
        """Z of users, w of items, x of both."""
        users, items = pyro.plate("users", len(x), dim=-2), pyro.plate("items", x.shape[1], dim=-1)
        with users:
            z = pyro.sample("z", self.p_z())  # (users, 1, k)
        with items:
            w = pyro.sample("w", self.p_z())  # (items, k)
        with users, items:
            pyro.sample("x", dist.Poisson((self.bias + (z * w).sum(-1)).exp()), obs=x)

    def guide(self, x: Tensor) -> None:
        """Z of each user given a row, w of each item given a column."""
        with pyro.plate("users", len(x), dim=-2):
            pyro.sample("z", self.q_z_given_row(x.unsqueeze(1)))
        with pyro.plate("items", x.shape[1], dim=-1):
            pyro.sample("w", self.q_w_given_column(x.T))


def main() -> None:
    """Trains on counts of rank K, compares the rates with the true ones, and scores users that were left out."""
    torch.manual_seed(0)
    true = (torch.randn(USERS + 40, K) @ torch.randn(K, ITEMS) * 0.4 + 0.5).exp()
    x = torch.poisson(true)
    pair = UsersAndItems()
    history = ppvae.fit(pair, x[:USERS], batch_size=USERS, epochs=800, lr=3e-3, progress=False).history
    print(f"ELBO of all counts: {USERS * history[0]['elbo']:.0f} at first, {USERS * history[-1]['elbo']:.0f} at last")

    with torch.no_grad():
        w = pair.q_w_given_column(x[:USERS].T).mean
        found = pair.bias + pair.q_z_given_row(x[:USERS]).mean @ w.T
    error = (found - true[:USERS].log()).square().mean().sqrt()
    print(f"log rates are off by {float(error):.2f}, and vary by {float(true.log().std()):.2f}")

    def model(x: Tensor) -> None:
        with pyro.plate("users", len(x)):
            z = pyro.sample("z", pair.p_z())
            pyro.sample("x", dist.Poisson((pair.bias + z @ w.T).exp()).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("users", len(x)):
            pyro.sample("z", pair.q_z_given_row(x))

    print("new users:", ppvae.log_marginal(ppvae.Pair(model, guide, [pair]), x[USERS:], method="annealed").summary())


if __name__ == "__main__":
    main()
